"""The whole job of orders-stream beside programs that do a part of it, measured in one go: see __main__."""

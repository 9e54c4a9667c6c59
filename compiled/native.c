/* Texts of ids, amounts and times, a key's hash, records of a Kafka batch and columns of rows, as bytes: what
   contracts/ids.py, contracts/money.py, contracts/times.py, streams/partitioner.py, wire/builder.py and
   sinks/arrays.py do themselves where there is no C compiler.
   Mechanical: no rule of an order is here. Tests hold both forms to each other byte by byte. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <stdint.h>
#include <string.h>

static const char HEX[] = "0123456789abcdef";

/* -- ids ------------------------------------------------------------------------------------------------- */

#define UUID_BYTES 16
#define UUID_TEXT 36

static void write_uuid(const uint8_t *raw, char *out)
{
    for (int at = 0; at < UUID_BYTES; at++) {
        if (at == 4 || at == 6 || at == 8 || at == 10)
            *out++ = '-';
        *out++ = HEX[raw[at] >> 4];
        *out++ = HEX[raw[at] & 15];
    }
}

static PyObject *text_of_uuid(const uint8_t *raw)
{
    PyObject *text = PyUnicode_New(UUID_TEXT, 127);
    if (text != NULL)
        write_uuid(raw, (char *)PyUnicode_1BYTE_DATA(text));
    return text;
}

static const uint8_t *uuid_bytes(PyObject *raw)
{
    if (!PyBytes_Check(raw) || PyBytes_GET_SIZE(raw) != UUID_BYTES) {
        PyErr_SetString(PyExc_ValueError, "an id has 16 bytes");
        return NULL;
    }
    return (const uint8_t *)PyBytes_AS_STRING(raw);
}

static PyObject *uuid_text(PyObject *module, PyObject *raw)
{
    const uint8_t *bytes = uuid_bytes(raw);
    return bytes == NULL ? NULL : text_of_uuid(bytes);
}

/* SHA-1, as RFC 3174 defines it. */

static inline uint32_t rotated(uint32_t word, int bits)
{
    return word << bits | word >> (32 - bits);
}

static inline uint32_t word_of(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* Written out, as a compiler leaves it a loop: that takes three times as long. */
static void sha1_block(uint32_t state[5], const uint8_t *block)
{
    uint32_t w[16], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
#define CHOICE(x, y, z) (z ^ (x & (y ^ z)))
#define PARITY(x, y, z) (x ^ y ^ z)
#define MAJORITY(x, y, z) ((x & y) | (z & (x | y)))
#define GIVEN(t) (w[t] = word_of(block + 4 * (t)))
#define MIXED(t) (w[(t) & 15] = rotated(w[((t) + 13) & 15] ^ w[((t) + 8) & 15] ^ w[((t) + 2) & 15] ^ w[(t) & 15], 1))
#define STEP(f, a, b, c, d, e, constant, word) (e += rotated(a, 5) + f(b, c, d) + (constant) + (word), b = rotated(b, 30))
#define FIVE(f, constant, word, t)                                                                             \
    STEP(f, a, b, c, d, e, constant, word(t));                                                                 \
    STEP(f, e, a, b, c, d, constant, word(t + 1));                                                             \
    STEP(f, d, e, a, b, c, constant, word(t + 2));                                                             \
    STEP(f, c, d, e, a, b, constant, word(t + 3));                                                             \
    STEP(f, b, c, d, e, a, constant, word(t + 4))
    FIVE(CHOICE, 0x5A827999u, GIVEN, 0);
    FIVE(CHOICE, 0x5A827999u, GIVEN, 5);
    FIVE(CHOICE, 0x5A827999u, GIVEN, 10);
    STEP(CHOICE, a, b, c, d, e, 0x5A827999u, GIVEN(15));
    STEP(CHOICE, e, a, b, c, d, 0x5A827999u, MIXED(16));
    STEP(CHOICE, d, e, a, b, c, 0x5A827999u, MIXED(17));
    STEP(CHOICE, c, d, e, a, b, 0x5A827999u, MIXED(18));
    STEP(CHOICE, b, c, d, e, a, 0x5A827999u, MIXED(19));
#define TWENTY(f, constant, t)                                                                                 \
    FIVE(f, constant, MIXED, t);                                                                               \
    FIVE(f, constant, MIXED, t + 5);                                                                           \
    FIVE(f, constant, MIXED, t + 10);                                                                          \
    FIVE(f, constant, MIXED, t + 15)
    TWENTY(PARITY, 0x6ED9EBA1u, 20);
    TWENTY(MAJORITY, 0x8F1BBCDCu, 40);
    TWENTY(PARITY, 0xCA62C1D6u, 60);
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

/* RFC 9562, section 5.5. Returns -1 with an exception set when the arguments are of another kind. */
static int make_uuid5(PyObject *const *args, Py_ssize_t count, uint8_t *out)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "uuid5 takes a namespace and a name");
        return -1;
    }
    const uint8_t *space = uuid_bytes(args[0]);
    Py_ssize_t size;
    const char *name = space == NULL ? NULL : PyUnicode_AsUTF8AndSize(args[1], &size);
    if (name == NULL)
        return -1;
    uint32_t state[5] = {0x67452301u, 0xEFCDAB89u, 0x98BADCFEu, 0x10325476u, 0xC3D2E1F0u};
    uint8_t block[64];
    memcpy(block, space, UUID_BYTES);
    size_t filled = UUID_BYTES, left = (size_t)size;
    const uint8_t *from = (const uint8_t *)name;
    while (left >= 64 - filled) {
        memcpy(block + filled, from, 64 - filled);
        from += 64 - filled, left -= 64 - filled;
        sha1_block(state, block);
        filled = 0;
    }
    memcpy(block + filled, from, left);
    filled += left;
    block[filled++] = 0x80;
    if (filled > 56) {
        memset(block + filled, 0, 64 - filled);
        sha1_block(state, block);
        filled = 0;
    }
    memset(block + filled, 0, 56 - filled);
    uint64_t bits = ((uint64_t)size + UUID_BYTES) * 8;
    for (int at = 0; at < 8; at++)
        block[56 + at] = (uint8_t)(bits >> (56 - 8 * at));
    sha1_block(state, block);
    for (int at = 0; at < UUID_BYTES; at++)
        out[at] = (uint8_t)(state[at / 4] >> (24 - 8 * (at % 4)));
    out[6] = (out[6] & 0x0F) | 0x50;
    out[8] = (out[8] & 0x3F) | 0x80;
    return 0;
}

static PyObject *uuid5(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    uint8_t made[UUID_BYTES];
    return make_uuid5(args, count, made) < 0 ? NULL : PyBytes_FromStringAndSize((char *)made, UUID_BYTES);
}

static PyObject *uuid5_text(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    uint8_t made[UUID_BYTES];
    return make_uuid5(args, count, made) < 0 ? NULL : text_of_uuid(made);
}

/* -- numbers --------------------------------------------------------------------------------------------- */

/* `count` digits of `number`, with leading zeros. */
static void write_digits(char *out, int64_t number, int count)
{
    while (count-- > 0) {
        out[count] = (char)('0' + number % 10);
        number /= 10;
    }
}

static PyObject *money_text(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "money_text takes an amount and how many decimals it has");
        return NULL;
    }
    long long amount = PyLong_AsLongLong(args[0]), digits = PyLong_AsLongLong(args[1]);
    if ((amount == -1 || digits == -1) && PyErr_Occurred())
        return NULL;
    if (amount < 0 || digits < 0 || digits > 9) {
        PyErr_SetString(PyExc_ValueError, "an amount isn't negative, and has at most 9 decimals");
        return NULL;
    }
    /* Nearly half of all amounts are 0: no discount, no tax, no shipping. One text for all of them. */
    static PyObject *zeros[10];
    if (amount == 0 && zeros[digits] != NULL)
        return Py_NewRef(zeros[digits]);
    int size = 1;
    for (long long rest = amount / 10; rest > 0; rest /= 10)
        size++;
    if (size <= digits)
        size = (int)digits + 1;
    PyObject *text = PyUnicode_New(size + (digits > 0), 127);
    if (text == NULL)
        return NULL;
    char *out = (char *)PyUnicode_1BYTE_DATA(text);
    if (amount == 0)
        zeros[digits] = Py_NewRef(text);
    int whole = size - (int)digits;
    if (digits > 0) {
        int64_t scale = 1;
        for (int at = 0; at < digits; at++)
            scale *= 10;
        write_digits(out + whole + 1, amount % scale, (int)digits);
        out[whole] = '.';
        amount /= scale;
    }
    write_digits(out, amount, whole);
    return text;
}

#define MICROS 1000000LL
#define DAY (86400 * MICROS)
#define EARLIEST (-62135596800LL * MICROS)
#define LATEST (253402300800LL * MICROS)

static PyObject *time_text(PyObject *module, PyObject *number)
{
    long long micros = PyLong_AsLongLong(number);
    if (micros == -1 && PyErr_Occurred())
        return NULL;
    if (micros < EARLIEST || micros >= LATEST) {
        PyErr_SetString(PyExc_OverflowError, "a time outside the years 1 to 9999");
        return NULL;
    }
    long long days = micros / DAY, rest = micros % DAY;
    if (rest < 0)
        rest += DAY, days--;
    /* The day of the Gregorian calendar, in years that begin with March: the leap day is the last of one. */
    long long since = days + 719468; /* from 0000-03-01 */
    long long era = (since >= 0 ? since : since - 146096) / 146097;
    int of_era = (int)(since - era * 146097);
    int year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    int shifted = (5 * of_year + 2) / 153;
    int day = of_year - (153 * shifted + 2) / 5 + 1;
    int month = shifted < 10 ? shifted + 3 : shifted - 9;
    long long year = era * 400 + year_of_era + (month <= 2);
    long long seconds = rest / MICROS, fraction = rest % MICROS;
    PyObject *text = PyUnicode_New(fraction ? 32 : 25, 127);
    if (text == NULL)
        return NULL;
    char *out = (char *)PyUnicode_1BYTE_DATA(text);
    memcpy(out, "0000-00-00T00:00:00", 19);
    write_digits(out, year, 4);
    write_digits(out + 5, month, 2);
    write_digits(out + 8, day, 2);
    write_digits(out + 11, seconds / 3600, 2);
    write_digits(out + 14, seconds / 60 % 60, 2);
    write_digits(out + 17, seconds % 60, 2);
    out += 19;
    if (fraction) {
        *out++ = '.';
        write_digits(out, fraction, 6);
        out += 6;
    }
    memcpy(out, "+00:00", 6);
    return text;
}

/* -- records of a batch ---------------------------------------------------------------------------------- */

static inline uint64_t zigzag(int64_t number)
{
    return ((uint64_t)number << 1) ^ (uint64_t)(number >> 63);
}

static inline Py_ssize_t varint_size(int64_t number)
{
    uint64_t rest = zigzag(number);
    Py_ssize_t size = 1;
    while (rest >>= 7)
        size++;
    return size;
}

static inline uint8_t *put_varint(uint8_t *out, int64_t number)
{
    uint64_t rest = zigzag(number);
    while (rest > 127) {
        *out++ = (uint8_t)(rest | 128);
        rest >>= 7;
    }
    *out++ = (uint8_t)rest;
    return out;
}

/* The bytes of a key, a value or a header's value, as they are kept by `object`; size -1: there are none. */
static int bytes_of(PyObject *object, const char **data, Py_ssize_t *size)
{
    if (object == Py_None) {
        *data = NULL, *size = -1;
        return 0;
    }
    if (!PyBytes_Check(object)) {
        PyErr_Format(PyExc_TypeError, "bytes or None, not %.100s", Py_TYPE(object)->tp_name);
        return -1;
    }
    *data = PyBytes_AS_STRING(object), *size = PyBytes_GET_SIZE(object);
    return 0;
}

static inline Py_ssize_t held(Py_ssize_t size)
{
    return varint_size(size) + (size > 0 ? size : 0);
}

static inline uint8_t *put_bytes(uint8_t *out, const char *data, Py_ssize_t size)
{
    out = put_varint(out, size);
    if (size > 0) {
        memcpy(out, data, (size_t)size);
        out += size;
    }
    return out;
}

/* One header's name and value; -1 with an exception set where it is none. */
static int header_of(PyObject *header, const char **name, Py_ssize_t *name_size, const char **value,
                     Py_ssize_t *value_size)
{
    if (!PyTuple_Check(header) || PyTuple_GET_SIZE(header) != 2) {
        PyErr_SetString(PyExc_TypeError, "a header is a tuple of name and value");
        return -1;
    }
    *name = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(header, 0), name_size);
    return *name == NULL ? -1 : bytes_of(PyTuple_GET_ITEM(header, 1), value, value_size);
}

/* One record to be written: what its parts are, and how many bytes they take. */
typedef struct {
    const char *key, *value;
    Py_ssize_t key_size, value_size, size;
    PyObject *headers;
} Record;

/* -1 with an exception set where it isn't (key, value, [header, ...], ...). */
static int measure(PyObject *item, long long offset, long long time, Record *record)
{
    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) < 3 || !PyList_Check(PyTuple_GET_ITEM(item, 2))) {
        PyErr_SetString(PyExc_TypeError, "a record is a tuple of key, value and a list of headers");
        return -1;
    }
    if (bytes_of(PyTuple_GET_ITEM(item, 0), &record->key, &record->key_size) < 0
        || bytes_of(PyTuple_GET_ITEM(item, 1), &record->value, &record->value_size) < 0)
        return -1;
    record->headers = PyTuple_GET_ITEM(item, 2);
    Py_ssize_t many = PyList_GET_SIZE(record->headers), name_size, content_size;
    const char *name, *content;
    record->size = 1 + varint_size(time) + varint_size(offset) + held(record->key_size)
                   + held(record->value_size) + varint_size(many);
    for (Py_ssize_t at = 0; at < many; at++) {
        PyObject *header = PyList_GET_ITEM(record->headers, at);
        if (header_of(header, &name, &name_size, &content, &content_size) < 0)
            return -1;
        record->size += held(name_size) + held(content_size);
    }
    return 0;
}

static uint8_t *put_record(uint8_t *out, const Record *record, long long offset, long long time)
{
    out = put_varint(out, record->size);
    *out++ = 0; /* attributes: none is in use */
    out = put_varint(out, time);
    out = put_varint(out, offset);
    out = put_bytes(out, record->key, record->key_size);
    out = put_bytes(out, record->value, record->value_size);
    Py_ssize_t many = PyList_GET_SIZE(record->headers), name_size = 0, content_size = 0;
    const char *name = NULL, *content = NULL;
    out = put_varint(out, many);
    for (Py_ssize_t at = 0; at < many; at++) {
        header_of(PyList_GET_ITEM(record->headers, at), &name, &name_size, &content, &content_size);
        out = put_bytes(out, name, name_size);
        out = put_bytes(out, content, content_size);
    }
    return out;
}

/* pack_records(records, first, room, least, offset, time): the records from the index `first` on, as many of
   them as take `room` bytes at most, but `least` of them however large they are, in message format 2. `offset`
   of the first and `time` of all are differences to the batch's. Returns (bytes, index after the last). */
static PyObject *pack_records(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 6 || !PyList_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "pack_records takes a list of records and five numbers");
        return NULL;
    }
    PyObject *records = args[0];
    Py_ssize_t first = PyLong_AsSsize_t(args[1]), room = PyLong_AsSsize_t(args[2]);
    Py_ssize_t least = PyLong_AsSsize_t(args[3]);
    long long offset = PyLong_AsLongLong(args[4]), time = PyLong_AsLongLong(args[5]);
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t end = first, size = 0, many = PyList_GET_SIZE(records);
    Record record;
    for (; end < many; end++) {
        if (measure(PyList_GET_ITEM(records, end), offset + (end - first), time, &record) < 0)
            return NULL;
        Py_ssize_t more = varint_size(record.size) + record.size;
        if (size + more > room && end - first >= least)
            break;
        size += more;
    }
    PyObject *packed = PyBytes_FromStringAndSize(NULL, size);
    if (packed == NULL)
        return NULL;
    uint8_t *out = (uint8_t *)PyBytes_AS_STRING(packed);
    for (Py_ssize_t at = first; at < end; at++) {
        measure(PyList_GET_ITEM(records, at), offset + (at - first), time, &record);
        out = put_record(out, &record, offset + (at - first), time);
    }
    return Py_BuildValue("(Nn)", packed, end);
}

/* -- columns of rows ------------------------------------------------------------------------------------- */

/* What sinks/arrays.py writes: arrays as PostgreSQL's binary format has them, of values that are text, a
   number or None. */

static inline uint8_t *put_number(uint8_t *out, uint64_t number, int bytes)
{
    for (int at = bytes - 1; at >= 0; at--)
        *out++ = (uint8_t)(number >> (8 * at));
    return out;
}

/* What a hexadecimal digit stands for; WRONG: of what is none. */
#define WRONG 16
static uint8_t hex_of[256];

static void fill_hex_of(void)
{
    memset(hex_of, WRONG, sizeof hex_of);
    for (int digit = 0; digit < 16; digit++) {
        hex_of[(uint8_t)HEX[digit]] = (uint8_t)digit;
        hex_of[(uint8_t)"0123456789ABCDEF"[digit]] = (uint8_t)digit;
    }
}

/* The next three return how many bytes they have written; -1: the text is none of the kind. */

static int put_uuid(uint8_t *out, const char *text, Py_ssize_t size)
{
    static const uint8_t starts[UUID_BYTES] = {0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34};
    if (size != UUID_TEXT || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-')
        return -1;
    unsigned wrong = 0;
    for (int at = 0; at < UUID_BYTES; at++) {
        unsigned high = hex_of[(uint8_t)text[starts[at]]], low = hex_of[(uint8_t)text[starts[at] + 1]];
        wrong |= high | low;
        out[at] = (uint8_t)(high << 4 | low);
    }
    return wrong & WRONG ? -1 : UUID_BYTES;
}

static inline int are_digits(const char *text, unsigned count)
{
    for (unsigned at = 0; at < count; at++)
        if (text[at] < '0' || text[at] > '9')
            return 0;
    return 1;
}

static inline int number_of(const char *text, int count)
{
    int number = 0;
    for (int at = 0; at < count; at++)
        number = 10 * number + (text[at] - '0');
    return number;
}

#define NUMERIC_TEXT 60
#define NUMERIC_MOST (8 + 2 * (NUMERIC_TEXT / 4 + 2))

/* Digits by fours: how many fours, the weight of the first, the sign, how many decimals are shown. */
static int put_numeric(uint8_t *out, const char *text, Py_ssize_t size)
{
    int negative = size > 0 && *text == '-';
    text += negative, size -= negative;
    if (size > NUMERIC_TEXT)
        return -1;
    const char *dot = memchr(text, '.', (size_t)size);
    unsigned whole = (unsigned)(dot == NULL ? size : dot - text);
    unsigned decimals = dot == NULL ? 0 : (unsigned)size - whole - 1;
    if (whole == 0 || (dot != NULL && decimals == 0) || !are_digits(text, whole)
        || (dot != NULL && !are_digits(dot + 1, decimals)))
        return -1;
    char digits[NUMERIC_TEXT + 8];
    unsigned before = (whole + 3) / 4, fours = before + (decimals + 3) / 4;
    memset(digits, '0', sizeof digits);
    memcpy(digits + 4 * before - whole, text, whole);
    if (decimals > 0)
        memcpy(digits + 4 * before, dot + 1, decimals);
    out = put_number(out, fours, 2);
    out = put_number(out, before - 1, 2);
    out = put_number(out, negative ? 0x4000 : 0, 2);
    out = put_number(out, decimals, 2);
    for (unsigned at = 0; at < fours; at++)
        out = put_number(out, (uint64_t)number_of(digits + 4 * at, 4), 2);
    return 8 + 2 * (int)fours;
}

/* Microseconds since 2000 of a time as time_text writes it. */
static int put_time(uint8_t *out, const char *text, Py_ssize_t size)
{
    static const char form[] = "0000-00-00T00:00:00.000000";
    static const int most[] = {0, 12, 31, 23, 59, 59};
    if ((size != 25 && size != 32) || memcmp(text + size - 6, "+00:00", 6) != 0)
        return -1;
    for (int at = 0; at < size - 6; at++)
        if (form[at] == '0' ? text[at] < '0' || text[at] > '9' : text[at] != form[at])
            return -1;
    int year = number_of(text, 4), part[6];
    for (int at = 1; at < 6; at++) {
        part[at] = number_of(text + 2 + 3 * at, 2);
        if (part[at] > most[at])
            return -1;
    }
    if (year == 0 || part[1] == 0 || part[2] == 0)
        return -1;
    int leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    if ((part[1] == 2 && part[2] > 28 + leap)
        || (part[2] == 31 && (part[1] == 4 || part[1] == 6 || part[1] == 9 || part[1] == 11)))
        return -1;
    /* As in time_text: years that begin with March. 730425 days from 0000-03-01 to 2000-01-01. */
    long long from = year - (part[1] <= 2);
    int shifted = part[1] > 2 ? part[1] - 3 : part[1] + 9;
    long long days = 365 * from + from / 4 - from / 100 + from / 400 + (153 * shifted + 2) / 5 + part[2] - 1 - 730425;
    long long micros = days * DAY + (part[3] * 3600LL + part[4] * 60 + part[5]) * MICROS;
    put_number(out, (uint64_t)(micros + (size == 32 ? number_of(text + 20, 6) : 0)), 8);
    return 8;
}

typedef int (*Put)(uint8_t *out, const char *text, Py_ssize_t size);

typedef struct {
    char kind;
    uint32_t type; /* Its number in PostgreSQL. */
    Py_ssize_t most; /* Bytes of a value. */
    Put put;
    const char *what;
} Kind;

static const Kind KINDS[] = {
    {'u', 2950, UUID_BYTES, put_uuid, "an id"},
    {'t', 25, 0, NULL, "text"},
    {'n', 1700, NUMERIC_MOST, put_numeric, "an amount"},
    {'i', 23, 4, NULL, "an integer"},
    {'z', 1184, 8, put_time, "a time"},
};

/* Rows: tuples, or objects of one class with a slot for each field of its __struct_fields__. */
typedef struct {
    PyObject *list;
    Py_ssize_t columns;
    Py_ssize_t *offsets; /* Of those slots; NULL: the rows are tuples. */
} Rows;

static inline PyObject *cell(const Rows *rows, Py_ssize_t row, Py_ssize_t column)
{
    PyObject *each = PyList_GET_ITEM(rows->list, row);
    return rows->offsets == NULL ? PyTuple_GET_ITEM(each, column)
                                 : *(PyObject **)((char *)each + rows->offsets[column]);
}

/* Where the objects of a class have their fields. -1 with an exception set if it has no such ones. */
static int find_slots(PyTypeObject *type, Rows *rows)
{
    PyObject *names = PyObject_GetAttrString((PyObject *)type, "__struct_fields__");
    if (names == NULL)
        PyErr_Clear();
    int found = names != NULL && PyTuple_Check(names) && PyTuple_GET_SIZE(names) == rows->columns;
    rows->offsets = found ? PyMem_Calloc((size_t)rows->columns + 1, sizeof *rows->offsets) : NULL;
    if (found && rows->offsets == NULL)
        PyErr_NoMemory();
    for (Py_ssize_t at = 0; rows->offsets != NULL && found && at < rows->columns; at++) {
        PyObject *slot = PyObject_GetAttr((PyObject *)type, PyTuple_GET_ITEM(names, at));
        found = slot != NULL && Py_IS_TYPE(slot, &PyMemberDescr_Type)
                && ((PyMemberDescrObject *)slot)->d_member->type == T_OBJECT_EX;
        if (found)
            rows->offsets[at] = ((PyMemberDescrObject *)slot)->d_member->offset;
        Py_XDECREF(slot);
    }
    Py_XDECREF(names);
    if (!found && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "a row is a tuple or a struct of as many values as there are kinds");
    return PyErr_Occurred() ? -1 : 0;
}

/* -1 with an exception set unless all rows are of one form and as wide as there are kinds. */
static int check_rows(Rows *rows)
{
    PyTypeObject *type = NULL;
    for (Py_ssize_t row = 0; row < PyList_GET_SIZE(rows->list); row++) {
        PyObject *each = PyList_GET_ITEM(rows->list, row);
        if (row == 0 && !PyTuple_Check(each)) {
            type = Py_TYPE(each);
            if (find_slots(type, rows) < 0)
                return -1;
        }
        if (type != NULL ? !Py_IS_TYPE(each, type)
                         : !PyTuple_Check(each) || PyTuple_GET_SIZE(each) != rows->columns)
            return PyErr_SetString(PyExc_ValueError, "all rows have as many values as there are kinds"), -1;
        for (Py_ssize_t column = 0; type != NULL && column < rows->columns; column++)
            if (cell(rows, row, column) == NULL)
                return PyErr_SetString(PyExc_ValueError, "a row without a value for each field"), -1;
    }
    return 0;
}

/* One value with its size before it; NULL with an exception set. */
static uint8_t *put_value(uint8_t *out, const Kind *kind, PyObject *value)
{
    if (value == Py_None)
        return put_number(out, 0xFFFFFFFFu, 4);
    if (kind->kind == 'i') {
        int overflow;
        long number = PyLong_AsLongAndOverflow(value, &overflow);
        if (number == -1 && PyErr_Occurred())
            return NULL;
        if (overflow || number < INT32_MIN || number > INT32_MAX)
            return PyErr_Format(PyExc_ValueError, "too large for an integer: %R", value), NULL;
        return put_number(put_number(out, 4, 4), (uint32_t)number, 4);
    }
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(value, &size);
    if (text == NULL)
        return NULL;
    if (kind->put == NULL) {
        out = put_number(out, (uint64_t)size, 4);
        memcpy(out, text, (size_t)size);
        return out + size;
    }
    int written = kind->put(out + 4, text, size);
    if (written < 0)
        return PyErr_Format(PyExc_ValueError, "not %s: %R", kind->what, value), NULL;
    return put_number(out, (uint64_t)written, 4) + written;
}

static PyObject *pack_column(const Rows *rows, Py_ssize_t column, const Kind *kind)
{
    Py_ssize_t many = PyList_GET_SIZE(rows->list), room = 20 + many * (4 + kind->most), size;
    int nulls = 0;
    for (Py_ssize_t row = 0; row < many; row++) {
        PyObject *value = cell(rows, row, column);
        if (value == Py_None)
            nulls = 1;
        else if (kind->kind == 't') {
            if (PyUnicode_AsUTF8AndSize(value, &size) == NULL)
                return NULL;
            room += size;
        }
    }
    PyObject *packed = PyBytes_FromStringAndSize(NULL, room);
    if (packed == NULL)
        return NULL;
    uint8_t *start = (uint8_t *)PyBytes_AS_STRING(packed), *out = start;
    out = put_number(out, 1, 4); /* dimensions */
    out = put_number(out, (uint64_t)nulls, 4);
    out = put_number(out, kind->type, 4);
    out = put_number(out, (uint64_t)many, 4);
    out = put_number(out, 1, 4); /* the first index */
    /* Rows beside each other often share a value: an order's id, an amount of 0, a currency. */
    PyObject *before = NULL;
    uint8_t *last = NULL;
    for (Py_ssize_t row = 0; row < many && out != NULL; row++) {
        PyObject *value = cell(rows, row, column);
        if (value == before) {
            size = out - last;
            memcpy(out, last, (size_t)size);
            last = out, out += size;
        }
        else {
            before = value, last = out;
            out = put_value(out, kind, value);
        }
    }
    if (out == NULL)
        Py_CLEAR(packed);
    else
        _PyBytes_Resize(&packed, out - start);
    return packed;
}

/* pack_columns(rows, kinds): an array for each column of a list of rows, of the kind that its byte says. */
static PyObject *pack_columns(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyList_Check(args[0]) || !PyBytes_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "pack_columns takes a list of rows and the kinds of their columns");
        return NULL;
    }
    Rows rows = {args[0], PyBytes_GET_SIZE(args[1]), NULL};
    PyObject *packed = check_rows(&rows) < 0 ? NULL : PyList_New(rows.columns);
    for (Py_ssize_t column = 0; packed != NULL && column < rows.columns; column++) {
        const Kind *kind = NULL;
        for (size_t at = 0; at < sizeof KINDS / sizeof *KINDS; at++)
            if (KINDS[at].kind == PyBytes_AS_STRING(args[1])[column])
                kind = &KINDS[at];
        PyObject *array = kind != NULL ? pack_column(&rows, column, kind)
                                       : (PyErr_SetString(PyExc_ValueError, "no such kind of column"), NULL);
        if (array == NULL)
            Py_CLEAR(packed);
        else
            PyList_SET_ITEM(packed, column, array);
    }
    PyMem_Free(rows.offsets);
    return packed;
}

/* -- a key's hash ---------------------------------------------------------------------------------------- */

#define MURMUR 0x5BD1E995u

/* murmur2(data): the hash by which Kafka's clients choose a key's partition, unsigned. */
static PyObject *murmur2(PyObject *module, PyObject *data)
{
    if (!PyBytes_Check(data)) {
        PyErr_SetString(PyExc_TypeError, "murmur2 takes bytes");
        return NULL;
    }
    const uint8_t *at = (const uint8_t *)PyBytes_AS_STRING(data);
    Py_ssize_t left = PyBytes_GET_SIZE(data);
    uint32_t hash = 0x9747B28Cu ^ (uint32_t)left;
    for (; left >= 4; left -= 4, at += 4) {
        uint32_t word = (uint32_t)at[3] << 24 | (uint32_t)at[2] << 16 | (uint32_t)at[1] << 8 | at[0];
        word *= MURMUR;
        hash = hash * MURMUR ^ (word ^ word >> 24) * MURMUR;
    }
    if (left > 0) {
        uint32_t tail = 0;
        for (Py_ssize_t byte = 0; byte < left; byte++)
            tail |= (uint32_t)at[byte] << (8 * byte);
        hash = (hash ^ tail) * MURMUR;
    }
    hash = (hash ^ hash >> 13) * MURMUR;
    return PyLong_FromUnsignedLong(hash ^ hash >> 15);
}

/* -- checksum -------------------------------------------------------------------------------------------- */

#if defined(__x86_64__) && defined(__GNUC__)
#include <nmmintrin.h>
#define HAS_CRC __builtin_cpu_supports("sse4.2")

/* crc32c(data): the checksum of a batch, by the processor's own instruction. */
__attribute__((target("sse4.2"))) static PyObject *crc32c(PyObject *module, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    const uint8_t *at = view.buf;
    Py_ssize_t left = view.len;
    uint64_t sum = 0xFFFFFFFFu, word;
    for (; left >= 8; left -= 8, at += 8) {
        memcpy(&word, at, 8);
        sum = _mm_crc32_u64(sum, word);
    }
    for (; left > 0; left--)
        sum = _mm_crc32_u8((uint32_t)sum, *at++);
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong((uint32_t)sum ^ 0xFFFFFFFFu);
}

static PyMethodDef checksum = {"crc32c", crc32c, METH_O, "crc32c(data): CRC-32C of bytes."};
#else
#define HAS_CRC 0
static PyMethodDef checksum = {NULL, NULL, 0, NULL};
#endif

/* -- the module ------------------------------------------------------------------------------------------ */

static PyMethodDef functions[] = {
    {"uuid_text", uuid_text, METH_O, "uuid_text(raw): 16 bytes as a UUID's canonical text."},
    {"uuid5", (PyCFunction)(void (*)(void))uuid5, METH_FASTCALL, "uuid5(namespace, name): as 16 bytes."},
    {"uuid5_text", (PyCFunction)(void (*)(void))uuid5_text, METH_FASTCALL,
     "uuid5_text(namespace, name): as canonical text."},
    {"money_text", (PyCFunction)(void (*)(void))money_text, METH_FASTCALL,
     "money_text(amount, digits): minor units, not below 0, as major units."},
    {"time_text", time_text, METH_O, "time_text(micros): microseconds since 1970 as RFC 3339 in UTC."},
    {"pack_records", (PyCFunction)(void (*)(void))pack_records, METH_FASTCALL,
     "pack_records(records, first, room, least, offset, time): (bytes, index after the last in them)."},
    {"pack_columns", (PyCFunction)(void (*)(void))pack_columns, METH_FASTCALL,
     "pack_columns(rows, kinds): an array for each column of a list of tuples, or of structs of one class."},
    {"murmur2", murmur2, METH_O, "murmur2(data): Kafka's hash of a key, unsigned."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "orders_native", "See the file.", 0, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_orders_native(void)
{
    fill_hex_of();
    PyObject *module = PyModule_Create(&definition);
    PyObject *function = module != NULL && HAS_CRC ? PyCFunction_New(&checksum, NULL) : NULL;
    if (function != NULL && PyModule_AddObject(module, checksum.ml_name, function) < 0)
        Py_DECREF(function);
    return module;
}

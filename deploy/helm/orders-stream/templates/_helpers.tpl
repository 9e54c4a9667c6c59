{{- define "orders.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "orders.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "orders.labels" -}}
{{ include "orders.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "orders.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* What a part has of its own, over what all have; null takes away. As YAML, since a template gives text. */}}
{{- define "orders.settings" -}}
{{- $all := deepCopy .root.Values.settings -}}
{{- range $name, $value := .part.settings -}}{{- $_ := set $all $name $value -}}{{- end -}}
{{- range $name, $value := $all -}}{{- if kindIs "invalid" $value -}}{{- $_ := unset $all $name -}}{{- end -}}{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{- define "orders.files" -}}
{{- $all := deepCopy .root.Values.files -}}
{{- range $name, $value := .part.files -}}{{- $_ := set $all $name $value -}}{{- end -}}
{{- range $name, $value := $all -}}{{- if kindIs "invalid" $value -}}{{- $_ := unset $all $name -}}{{- end -}}{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{/* A number of a values file is a float64 here, and would be written with an exponent. */}}
{{- define "orders.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}{{- printf "%.0f" . -}}{{- else -}}{{- toString . -}}{{- end -}}
{{- end -}}

{{- define "orders.env" -}}
{{- $secrets := list "postgres" "postgres_replica" "redis" "kafka_sasl_password" "kafka_ssl_key_password" "api_keys" "console_secret" "console_proxy_secret" -}}
{{- /* Settings whose value may lie in a file; of the others in files the path is the value. */}}
{{- $read := append $secrets "kafka_sasl_username" -}}
{{- $files := include "orders.files" . | fromYaml -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- range $name, $value := include "orders.settings" . | fromYaml }}
{{- if or (has $name $secrets) (hasKey $files $name) }}
{{- fail (printf "settings.%s: a secret or a file; it belongs into files" $name) }}
{{- end }}
- name: {{ printf "ORDERS_%s" (upper $name) }}
  value: {{ include "orders.text" $value | quote }}
{{- end }}
{{- range $name, $source := $files }}
{{- if has $name $read }}
- name: {{ printf "ORDERS_%s_FILE" (upper $name) }}
  value: {{ printf "/etc/orders/files/%s" $name }}
{{- else if not (has $name (list "postgres_ca" "redis_ca")) }}
- name: {{ printf "ORDERS_%s" (upper $name) }}
  value: {{ printf "/etc/orders/files/%s" $name }}
{{- end }}
{{- end }}
- name: ORDERS_DATA
  value: /data
{{- end -}}

{{- define "orders.filesVolume" -}}
- name: files
  projected:
    defaultMode: 0440
    sources:
      {{- range $name, $source := include "orders.files" . | fromYaml }}
      {{- if $source.serviceAccountToken }}
      - serviceAccountToken:
          path: {{ $name }}
          {{- toYaml $source.serviceAccountToken | nindent 10 }}
      {{- else if $source.configMap }}
      - configMap: {name: {{ $source.configMap | quote }}, items: [{key: {{ $source.key | quote }}, path: {{ $name }}}]}
      {{- else }}
      - secret: {name: {{ $source.secret | quote }}, items: [{key: {{ $source.key | quote }}, path: {{ $name }}}]}
      {{- end }}
      {{- end }}
{{- end -}}

{{/* What each pod is, whatever runs in it. */}}
{{- define "orders.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .part.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Nodes fail: a part's pods go to different ones where there are several. */}}
{{- define "orders.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "orders.selector" . | nindent 8 }}
{{- end -}}

{{- define "orders.container" -}}
image: {{ include "orders.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
resources: {{- toYaml .part.resources | nindent 2 }}
env: {{- include "orders.env" . | nindent 2 }}
{{- end -}}

{{- define "orders.mounts" -}}
- {name: data, mountPath: /data}
- {name: tmp, mountPath: /tmp}
- {name: files, mountPath: /etc/orders/files, readOnly: true}
{{- end -}}

{{/* Alive while its event loop turns; ready while its lanes are open, or while it stands by without any. */}}
{{- define "orders.workerProbes" -}}
startupProbe:
  httpGet: {path: /live, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /live, port: metrics}
  periodSeconds: 15
  timeoutSeconds: 5
  failureThreshold: 4
readinessProbe:
  httpGet: {path: /ready, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
{{- end -}}

{{- define "orders.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "orders.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

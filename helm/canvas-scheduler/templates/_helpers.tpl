{{- define "cs.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $both := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- default $both .Values.fullnameOverride | trunc 45 | trimSuffix "-" }}
{{- end }}

{{- define "cs.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "cs.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "cs.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* The labels of the pods that serve callers. */}}
{{- define "cs.apiSelector" -}}
{{ include "cs.selector" . }}
app.kubernetes.io/component: {{ .Values.split | ternary "api" "server" }}
{{- end }}

{{- /* The labels of all pods that keep running, which excludes those of the migration. */}}
{{- define "cs.podSelector" -}}
matchLabels:
  {{- include "cs.selector" . | nindent 2 }}
matchExpressions:
  - {key: app.kubernetes.io/component, operator: In, values: [server, api, dispatcher]}
{{- end }}

{{- define "cs.serviceAccount" -}}
{{ default (.Values.serviceAccount.create | ternary (include "cs.fullname" .) "default") .Values.serviceAccount.name }}
{{- end }}

{{- define "cs.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ default .Chart.AppVersion .Values.image.tag }}{{ end }}
{{- end }}

{{- define "cs.tlsSecret" -}}
{{ .Values.certificate.enabled | ternary (printf "%s-tls" (include "cs.fullname" .)) .Values.tls.existingSecret }}
{{- end }}

{{- /* The Deployments by name, each with its values. */}}
{{- define "cs.components" -}}
{{- $placement := pick .Values "nodeSelector" "tolerations" "affinity" "priorityClassName" "topologySpread" }}
{{- $pods := pick .Values "settings" "env" "replicas" "resources" "podAnnotations" "podLabels" "autoscaling" "podDisruptionBudget" }}
{{- $common := merge $pods $placement }}
{{- if .Values.split }}
{{- range $role := list "api" "dispatcher" }}
{{- $own := mergeOverwrite (deepCopy $common) (deepCopy (index $.Values $role)) }}
{{ $role }}: {{ merge (dict "roles" $role "name" (printf "%s-%s" (include "cs.fullname" $) $role)) $own | toJson }}
{{- end }}
{{- else }}
server: {{ merge (dict "roles" "api,dispatcher" "name" (include "cs.fullname" .)) $common | toJson }}
{{- end }}
{{- end }}

{{- /* A number in a values file is a float64, whose text may be 1e+06. */}}
{{- define "cs.text" -}}
{{ kindIs "float64" . | ternary (printf "%.0f" (. | float64)) (. | toString) }}
{{- end }}

{{- define "cs.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* The common part of every pod's spec. */}}
{{- define "cs.podSpec" -}}
serviceAccountName: {{ include "cs.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "cs.fromSecret" -}}
- name: {{ .name }}
  valueFrom: {secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}}
{{- end }}

{{- /* The address of the database. If it is given in parts, PostgreSQL's own variables complete an empty URL, so no password needs escaping. */}}
{{- define "cs.databaseEnv" -}}
{{- with .Values.database }}
{{- if .sqlite.enabled -}}
- {name: CANVAS_SCHEDULER_DATABASE_URL, value: "sqlite:///data/canvas-scheduler.db?mode=rwc"}
{{- else if .urlKey -}}
{{ include "cs.fromSecret" (dict "name" "CANVAS_SCHEDULER_DATABASE_URL" "secret" .existingSecret "key" .urlKey) }}
{{- else -}}
- {name: CANVAS_SCHEDULER_DATABASE_URL, value: "postgres://?sslmode={{ .sslMode }}"}
{{- $secret := .existingSecret }}
{{- range $variable, $part := dict "PGHOST" "host" "PGPORT" "port" "PGUSER" "user" "PGPASSWORD" "password" "PGDATABASE" "dbname" }}
{{ include "cs.fromSecret" (dict "name" $variable "secret" $secret "key" (index $.Values.database.partKeys $part)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "cs.sinkEnv" -}}
{{- with .Values.sink }}
{{- if .type }}
- {name: CANVAS_SCHEDULER_SINK, value: {{ .type }}}
{{- if .urlKey }}
{{ include "cs.fromSecret" (dict "name" "CANVAS_SCHEDULER_SINK_URL" "secret" .existingSecret "key" .urlKey) }}
{{- else if .url }}
- {name: CANVAS_SCHEDULER_SINK_URL, value: {{ .url | quote }}}
{{- end }}
{{- if and .existingSecret .secretKey }}
{{ include "cs.fromSecret" (dict "name" "CANVAS_SCHEDULER_SINK_SECRET" "secret" .existingSecret "key" .secretKey) }}
{{- end }}
{{- if .caSecret }}
- {name: CANVAS_SCHEDULER_SINK_CA_FILE, value: /sink-ca/ca.crt}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The settings of a Deployment. `settings` cannot contradict them, because the schema refuses these names there. */}}
{{- define "cs.serveEnv" -}}
{{- $values := .root.Values }}
- {name: CANVAS_SCHEDULER_ROLES, value: "{{ .own.roles }}"}
- {name: CANVAS_SCHEDULER_GRPC_ADDR, value: "{{ $values.bindAddress }}:50051"}
- {name: CANVAS_SCHEDULER_ADMIN_ADDR, value: "{{ $values.bindAddress }}:9090"}
- {name: CANVAS_SCHEDULER_GATEWAY, value: "{{ $values.gateway.enabled | ternary "on" "off" }}"}
- {name: CANVAS_SCHEDULER_GATEWAY_ADDR, value: "{{ $values.bindAddress }}:8080"}
- {name: CANVAS_SCHEDULER_DRAIN, value: {{ $values.shutdown.drainSeconds }}s}
{{ include "cs.databaseEnv" .root }}
{{- if contains "dispatcher" .own.roles }}
{{- include "cs.sinkEnv" .root }}
{{- end }}
{{- if include "cs.tlsSecret" .root }}
- {name: CANVAS_SCHEDULER_TLS_CERT, value: /tls/tls.crt}
- {name: CANVAS_SCHEDULER_TLS_KEY, value: /tls/tls.key}
{{- if $values.tls.clientAuth }}
- {name: CANVAS_SCHEDULER_TLS_CLIENT_CA, value: /tls/ca.crt}
{{- end }}
{{- else }}
- {name: CANVAS_SCHEDULER_PLAINTEXT, value: "on"}
{{- end }}
{{- range $name, $value := .own.settings }}
- {name: CANVAS_SCHEDULER_{{ $name | upper | replace "-" "_" }}, value: {{ include "cs.text" $value | quote }}}
{{- end }}
{{- with .own.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* The host name of the gRPC port within the cluster. */}}
{{- define "cs.host" -}}
{{ include "cs.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end }}

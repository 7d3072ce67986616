{{- /* Fails with what to do about values that contradict each other. */}}
{{- define "cs.validate" -}}
{{- $v := .Values }}
{{- if and $v.database.sqlite.enabled $v.database.existingSecret }}
{{- fail "database.existingSecret and database.sqlite.enabled: only one of them; PostgreSQL is for production" }}
{{- end }}
{{- if not (or $v.database.sqlite.enabled $v.database.existingSecret) }}
{{- fail "database.existingSecret: name a Secret that says where PostgreSQL is, or try it with database.sqlite.enabled=true and replicas=1" }}
{{- end }}
{{- if $v.database.sqlite.enabled }}
{{- if $v.split }}
{{- fail "split: the Deployments would need one database; use PostgreSQL (database.existingSecret)" }}
{{- end }}
{{- if or (gt (int $v.replicas) 1) $v.autoscaling.enabled }}
{{- fail "replicas: SQLite is a file of one pod, so set replicas=1 and autoscaling.enabled=false, or use PostgreSQL (database.existingSecret)" }}
{{- end }}
{{- end }}
{{- if and $v.split (not $v.sink.type) }}
{{- fail "sink.type: a dispatcher of its own (split=true) needs a place to send to: log, grpc, webhook or nats" }}
{{- end }}
{{- if and (has $v.sink.type (list "grpc" "webhook" "nats")) (not (or $v.sink.url $v.sink.urlKey)) }}
{{- fail (printf "sink.url: a %s sink needs one, or sink.urlKey with sink.existingSecret" $v.sink.type) }}
{{- end }}
{{- if and $v.sink.urlKey (or $v.sink.url (not $v.sink.existingSecret)) }}
{{- fail "sink.urlKey: reads the URL from sink.existingSecret, in place of sink.url" }}
{{- end }}
{{- if and (eq $v.sink.type "webhook") (not (and $v.sink.existingSecret $v.sink.secretKey)) }}
{{- fail "sink.existingSecret: a webhook is signed, so name a Secret that holds its whsec_ secret, and its key as sink.secretKey" }}
{{- end }}
{{- if and $v.certificate.enabled $v.tls.existingSecret }}
{{- fail "tls.existingSecret and certificate.enabled: only one of them; cert-manager makes a Secret of its own" }}
{{- end }}
{{- if and $v.certificate.enabled (not $v.certificate.issuerRef) }}
{{- fail "certificate.issuerRef: say who signs, such as {name: internal, kind: ClusterIssuer}" }}
{{- end }}
{{- if and $v.tls.clientAuth (not (include "cs.tlsSecret" .)) }}
{{- fail "tls.clientAuth: needs TLS, by tls.existingSecret or certificate.enabled" }}
{{- end }}
{{- if and $v.httpRoute.enabled (not $v.gateway.enabled) }}
{{- fail "httpRoute.enabled: routes to the REST gateway, so set gateway.enabled=true" }}
{{- end }}
{{- range $kind := list "grpcRoute" "httpRoute" }}
{{- if and (index $v $kind).enabled (not (index $v $kind).parentRefs) }}
{{- fail (printf "%s.parentRefs: name the Gateway that it is of" $kind) }}
{{- end }}
{{- end }}
{{- range $name, $own := include "cs.components" . | fromYaml }}
{{- with $own.autoscaling }}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}
{{- fail (printf "autoscaling (%s): minReplicas %v is more than maxReplicas %v" $name (int .minReplicas) (int .maxReplicas)) }}
{{- end }}
{{- if and .enabled (not (dig "requests" "cpu" "" $own.resources)) }}
{{- fail (printf "resources.requests.cpu (%s): autoscaling goes by a share of it, so it must be stated" $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

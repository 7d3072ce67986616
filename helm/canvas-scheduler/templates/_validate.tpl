{{- /* Fails if values contradict each other, with a message that says what to do. */}}
{{- define "cs.validate" -}}
{{- $v := .Values }}
{{- if and $v.database.sqlite.enabled $v.database.existingSecret }}
{{- fail "database.existingSecret and database.sqlite.enabled: set only one of them; use PostgreSQL (database.existingSecret) in production" }}
{{- end }}
{{- if not (or $v.database.sqlite.enabled $v.database.existingSecret) }}
{{- fail "database.existingSecret: name a Secret with the address of PostgreSQL, or set database.sqlite.enabled=true and replicas=1 for a trial" }}
{{- end }}
{{- if $v.database.sqlite.enabled }}
{{- if $v.split }}
{{- fail "split: two Deployments cannot share a SQLite file; use PostgreSQL (database.existingSecret)" }}
{{- end }}
{{- if or (gt (int $v.replicas) 1) $v.autoscaling.enabled }}
{{- fail "replicas: only one pod can use a SQLite file; set replicas=1 and autoscaling.enabled=false, or use PostgreSQL (database.existingSecret)" }}
{{- end }}
{{- end }}
{{- if and $v.split (not $v.sink.type) }}
{{- fail "sink.type: the dispatcher Deployment (split=true) needs a sink; set log, grpc, webhook or nats" }}
{{- end }}
{{- if and (has $v.sink.type (list "grpc" "webhook" "nats")) (not (or $v.sink.url $v.sink.urlKey)) }}
{{- fail (printf "sink.url: a %s sink needs a URL; set sink.url, or sink.urlKey with sink.existingSecret" $v.sink.type) }}
{{- end }}
{{- if and $v.sink.urlKey (or $v.sink.url (not $v.sink.existingSecret)) }}
{{- fail "sink.urlKey: the URL comes from sink.existingSecret; set that, and leave sink.url empty" }}
{{- end }}
{{- if and (eq $v.sink.type "webhook") (not (and $v.sink.existingSecret $v.sink.secretKey)) }}
{{- fail "sink.existingSecret: a webhook needs a signing secret; name a Secret that contains a whsec_ secret, and its key as sink.secretKey" }}
{{- end }}
{{- if and $v.certificate.enabled $v.tls.existingSecret }}
{{- fail "tls.existingSecret and certificate.enabled: set only one of them; cert-manager creates its own Secret" }}
{{- end }}
{{- if and $v.certificate.enabled (not $v.certificate.issuerRef) }}
{{- fail "certificate.issuerRef: name the issuer, such as {name: internal, kind: ClusterIssuer}" }}
{{- end }}
{{- if and $v.tls.clientAuth (not (include "cs.tlsSecret" .)) }}
{{- fail "tls.clientAuth: client certificates need TLS; set tls.existingSecret or certificate.enabled" }}
{{- end }}
{{- if and $v.httpRoute.enabled (not $v.gateway.enabled) }}
{{- fail "httpRoute.enabled: the route leads to the REST gateway; set gateway.enabled=true" }}
{{- end }}
{{- range $kind := list "grpcRoute" "httpRoute" }}
{{- if and (index $v $kind).enabled (not (index $v $kind).parentRefs) }}
{{- fail (printf "%s.parentRefs: name the Gateway of the route" $kind) }}
{{- end }}
{{- end }}
{{- range $name, $own := include "cs.components" . | fromYaml }}
{{- with $own.autoscaling }}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}
{{- fail (printf "autoscaling (%s): minReplicas %v is greater than maxReplicas %v" $name (int .minReplicas) (int .maxReplicas)) }}
{{- end }}
{{- if and .enabled (not (dig "requests" "cpu" "" $own.resources)) }}
{{- fail (printf "resources.requests.cpu (%s): autoscaling needs a CPU request; set one" $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

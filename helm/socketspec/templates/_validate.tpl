{{/* Mistakes that a schema cannot see. One sentence each: what is wrong, and what to do. */}}
{{- define "socketspec.validate" -}}
{{- include "socketspec.validate.redis" . -}}
{{- include "socketspec.validate.secrets" . -}}
{{- include "socketspec.validate.scaling" . -}}
{{- include "socketspec.validate.exposure" . -}}
{{- include "socketspec.validate.env" . -}}
{{- end }}

{{- define "socketspec.validate.redis" -}}
{{- $cure := "set redis.url or redis.existingSecret.name (or valkey.enabled=true, to try it out)" -}}
{{- if not (include "socketspec.hasRedis" .) -}}
{{- if .Values.autoscaling.enabled -}}
{{- fail (printf "autoscaling.enabled needs Redis, since without it each pod has rooms of its own: %s." $cure) -}}
{{- end -}}
{{- if gt (int64 .Values.replicas) 1 -}}
{{- fail (printf "replicas is %d, but without Redis each pod has rooms of its own: %s, or replicas=1." (int64 .Values.replicas) $cure) -}}
{{- end -}}
{{- end -}}
{{- $given := 0 -}}
{{- if .Values.redis.url }}{{ $given = add1 $given }}{{ end -}}
{{- if .Values.redis.existingSecret.name }}{{ $given = add1 $given }}{{ end -}}
{{- if .Values.valkey.enabled }}{{ $given = add1 $given }}{{ end -}}
{{- if gt (int $given) 1 -}}
{{- fail "redis.url, redis.existingSecret.name and valkey.enabled exclude each other: keep one of them." -}}
{{- end -}}
{{- end }}

{{- define "socketspec.validate.secrets" -}}
{{- $keys := .Values.existingSecret.keys -}}
{{- range $name, $here := dict
  "jwtSecret" (list .Values.auth.jwt.secret "auth.jwt.secret")
  "apiKeys" (list .Values.auth.apiKeys "auth.apiKeys")
  "docsToken" (list .Values.docs.token "docs.token")
  "metricsToken" (list .Values.metrics.token "metrics.token") -}}
{{- if get $keys $name -}}
{{- if first $here -}}
{{- fail (printf "%s and existingSecret.keys.%s say the same: keep one of them." (last $here) $name) -}}
{{- end -}}
{{- if not $.Values.existingSecret.name -}}
{{- fail (printf "existingSecret.keys.%s is a key of which Secret? Set existingSecret.name." $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $ways := list -}}
{{- range $name, $value := dict "auth.jwt.secret" (or .Values.auth.jwt.secret $keys.jwtSecret) "auth.jwt.publicKey" .Values.auth.jwt.publicKey "auth.jwt.jwksUrl" .Values.auth.jwt.jwksUrl -}}
{{- if $value }}{{ $ways = append $ways $name }}{{ end -}}
{{- end -}}
{{- if gt (len $ways) 1 -}}
{{- fail (printf "%s exclude each other: keep one of them." (join " and " $ways)) -}}
{{- end -}}
{{- $tokens := len $ways -}}
{{- if or .Values.auth.apiKeys $keys.apiKeys }}{{ $ways = append $ways "auth.apiKeys" }}{{ end -}}
{{- if and .Values.auth.anonymous $ways -}}
{{- fail (printf "auth.anonymous lets everybody in, so that %s would keep nobody out: keep one of them." (join " and " $ways)) -}}
{{- end -}}
{{- with .Values.auth.jwt -}}
{{- if and (or .algorithm .audience .issuer) (not $tokens) -}}
{{- fail "auth.jwt.algorithm, audience and issuer are about tokens, but nothing verifies them: set auth.jwt.jwksUrl, auth.jwt.secret or auth.jwt.publicKey." -}}
{{- end -}}
{{- end -}}
{{- if and (int64 .Values.config.burst) (eq (float64 .Values.config.rate) 0.0) -}}
{{- fail "config.burst needs a limit to exceed: set config.rate above 0, or leave it out." -}}
{{- end -}}
{{- end }}

{{- define "socketspec.validate.scaling" -}}
{{- with .Values.autoscaling -}}
{{- if .enabled -}}
{{- if gt (int64 .minReplicas) (int64 .maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas is %d, more than autoscaling.maxReplicas, %d." (int64 .minReplicas) (int64 .maxReplicas)) -}}
{{- end -}}
{{- if not (or (int64 .cpu) (int64 .connections)) -}}
{{- fail "autoscaling.enabled by what? Set autoscaling.cpu or autoscaling.connections." -}}
{{- end -}}
{{- if and (int64 .cpu) (not ($.Values.resources.requests | default dict).cpu) -}}
{{- fail "autoscaling.cpu is a share of resources.requests.cpu, which is not set." -}}
{{- end -}}
{{- if and (eq .kind "keda") (int64 .connections) (not .keda.prometheus.serverAddress) -}}
{{- fail "KEDA asks Prometheus for connections: set autoscaling.keda.prometheus.serverAddress." -}}
{{- end -}}
{{- if and (int64 .connections) (not $.Values.metrics.enabled) -}}
{{- fail "autoscaling.connections needs the metrics of the nodes: set metrics.enabled=true." -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "socketspec.validate.exposure" -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled needs a host name: set ingress.hosts." -}}
{{- end -}}
{{- if and .Values.route.enabled (not .Values.route.parentRefs) -}}
{{- fail "route.enabled needs a Gateway to belong to: set route.parentRefs." -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.enabled) -}}
{{- fail "metrics.serviceMonitor.enabled would watch what metrics.enabled=false turns off." -}}
{{- end -}}
{{- end }}

{{- define "socketspec.validate.env" -}}
{{- $elsewhere := dict
  "SOCKETSPEC_APP" "app"
  "SOCKETSPEC_BACKEND" "redis.url or redis.existingSecret"
  "SOCKETSPEC_DRAIN_WINDOW" "drain.windowSeconds, from which the grace period is computed"
  "SOCKETSPEC_DRAIN_GRACE" "drain.graceSeconds, from which the grace period is computed"
  "SOCKETSPEC_WORKERS" "replicas: one process a pod"
  "SOCKETSPEC_PORT" "service.port: pods always listen on 8000"
  "SOCKETSPEC_NAMESPACE" "config.namespace"
  "SOCKETSPEC_PATH" "config.path"
  "SOCKETSPEC_ALLOWED_ORIGINS" "config.allowedOrigins"
  "SOCKETSPEC_RATE" "config.rate"
  "SOCKETSPEC_BURST" "config.burst"
  "SOCKETSPEC_MAX_PAYLOAD_SIZE" "config.maxPayloadSize"
  "SOCKETSPEC_MAX_CONNECTIONS_PER_USER" "config.maxConnectionsPerUser"
  "SOCKETSPEC_FORWARDED_ALLOW_IPS" "config.forwardedAllowIps"
  "SOCKETSPEC_LOG_LEVEL" "config.logLevel"
  "SOCKETSPEC_LOG_FORMAT" "config.logFormat"
  "SOCKETSPEC_METRICS" "metrics.enabled"
  "SOCKETSPEC_METRICS_TOKEN" "metrics.token or existingSecret"
  "SOCKETSPEC_DOCS_TOKEN" "docs.token or existingSecret"
  "SOCKETSPEC_ANONYMOUS" "auth.anonymous"
  "SOCKETSPEC_API_KEYS" "auth.apiKeys or existingSecret"
  "SOCKETSPEC_JWT_SECRET" "auth.jwt.secret or existingSecret"
  "SOCKETSPEC_JWT_PUBLIC_KEY" "auth.jwt.publicKey"
  "SOCKETSPEC_JWKS_URL" "auth.jwt.jwksUrl"
  "SOCKETSPEC_JWT_ALGORITHM" "auth.jwt.algorithm"
  "SOCKETSPEC_JWT_AUDIENCE" "auth.jwt.audience"
  "SOCKETSPEC_JWT_ISSUER" "auth.jwt.issuer" -}}
{{- $seen := dict -}}
{{- range .Values.extraEnv -}}
{{- if hasKey $elsewhere .name -}}
{{- fail (printf "extraEnv must not set %s; use %s." .name (get $elsewhere .name)) -}}
{{- end -}}
{{- if hasKey $seen .name -}}
{{- fail (printf "extraEnv sets %s twice." .name) -}}
{{- end -}}
{{- $_ := set $seen .name true -}}
{{- end -}}
{{- end }}

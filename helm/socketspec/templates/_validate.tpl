{{/* Mistakes that a schema cannot see. One sentence each: what is wrong, and what to do. */}}
{{- define "socketspec.validate" -}}
{{- include "socketspec.validate.redis" . -}}
{{- include "socketspec.validate.secrets" . -}}
{{- include "socketspec.validate.scaling" . -}}
{{- include "socketspec.validate.rollout" . -}}
{{- include "socketspec.validate.exposure" . -}}
{{- include "socketspec.validate.volumes" . -}}
{{- include "socketspec.validate.test" . -}}
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
{{- /* Kubernetes allows no period beyond 1800 seconds; a longer window has to live with that. */ -}}
{{- $window := int64 $.Values.drain.windowSeconds -}}
{{- if lt (int64 .scaleDown.periodSeconds) (min $window 1800) -}}
{{- fail (printf "autoscaling.scaleDown.periodSeconds is %d, but a pod takes %d seconds to leave (drain.windowSeconds): pods would drain at once. Set it to %d." (int64 .scaleDown.periodSeconds) $window (min $window 1800)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "socketspec.validate.rollout" -}}
{{- if eq (toString (get .Values "enabled")) "false" -}}
{{- fail "enabled=false turns nothing off by itself: in Chart.yaml of the chart that has this one as a dependency, name it as the condition, such as socketspec.enabled." -}}
{{- end -}}
{{- $ready := include "socketspec.minReadySeconds" . | int64 -}}
{{- $deadline := include "socketspec.progressDeadlineSeconds" . | int64 -}}
{{- if le $deadline $ready -}}
{{- fail (printf "rollout.progressDeadlineSeconds is %d, but a new pod counts only after rollout.minReadySeconds, %d: set more than that, or leave it empty." $deadline $ready) -}}
{{- end -}}
{{- end }}

{{- define "socketspec.validate.exposure" -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled needs a host name: set ingress.hosts." -}}
{{- end -}}
{{- if and .Values.route.enabled (not .Values.route.parentRefs) -}}
{{- fail "route.enabled needs a Gateway to belong to: set route.parentRefs." -}}
{{- end -}}
{{- range $name, $monitor := dict "podMonitor" .Values.metrics.podMonitor "serviceMonitor" .Values.metrics.serviceMonitor -}}
{{- if and $monitor.enabled (not $.Values.metrics.enabled) -}}
{{- fail (printf "metrics.%s.enabled would watch what metrics.enabled=false turns off." $name) -}}
{{- end -}}
{{- if gt (include "socketspec.milliseconds" $monitor.scrapeTimeout | int64) (include "socketspec.milliseconds" $monitor.interval | int64) -}}
{{- fail (printf "metrics.%s.scrapeTimeout is %s, longer than metrics.%s.interval, %s: Prometheus refuses that." $name $monitor.scrapeTimeout $name $monitor.interval) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled -}}
{{- fail "metrics.podMonitor.enabled and metrics.serviceMonitor.enabled would both scrape the pods, and every sum would be twice what it is: keep one of them." -}}
{{- end -}}
{{- if and .Values.service.externalTrafficPolicy (eq .Values.service.type "ClusterIP") -}}
{{- fail "service.externalTrafficPolicy is about clients from outside: set service.type to NodePort or LoadBalancer, or leave it out." -}}
{{- end -}}
{{- if and .Values.service.loadBalancerSourceRanges (ne .Values.service.type "LoadBalancer") -}}
{{- fail (printf "service.loadBalancerSourceRanges limits a LoadBalancer, but service.type is %s." .Values.service.type) -}}
{{- end -}}
{{- if and (has "*" .Values.config.allowedOrigins) (gt (len .Values.config.allowedOrigins) 1) -}}
{{- fail "config.allowedOrigins names * and others, but * is all of them: keep it alone, or leave it out." -}}
{{- end -}}
{{- end }}

{{/* A duration of Prometheus in milliseconds. */}}
{{- define "socketspec.milliseconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 "w" 604800000 "y" 31536000000 -}}
{{- $sum := 0 -}}
{{- range regexFindAll "[0-9]+[a-z]+" . -1 -}}
{{- $sum = add $sum (mul (regexFind "^[0-9]+" . | atoi) (get $units (regexFind "[a-z]+$" .))) -}}
{{- end -}}
{{- $sum -}}
{{- end }}

{{- define "socketspec.validate.volumes" -}}
{{- $names := dict "tmp" true -}}
{{- range include "socketspec.tpl" (list . .Values.extraVolumes) | fromYamlArray -}}
{{- if hasKey $names .name -}}
{{- fail (printf "extraVolumes has a second volume %s%s: give it another name." .name (eq .name "tmp" | ternary ", which is the chart's for /tmp" "")) -}}
{{- end -}}
{{- $_ := set $names .name true -}}
{{- end -}}
{{- $paths := dict "/tmp" true -}}
{{- range include "socketspec.tpl" (list . .Values.extraVolumeMounts) | fromYamlArray -}}
{{- $path := .mountPath | trimSuffix "/" -}}
{{- if hasKey $paths $path -}}
{{- fail (printf "extraVolumeMounts mounts something at %s%s: choose another place." .mountPath (eq $path "/tmp" | ternary ", where the chart's own volume is" " twice")) -}}
{{- end -}}
{{- $_ := set $paths $path true -}}
{{- if not (hasKey $names .name) -}}
{{- fail (printf "extraVolumeMounts mounts %s, which is no volume: name it in extraVolumes." .name) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "socketspec.validate.test" -}}
{{- if .Values.test.enabled -}}
{{- range $name, $text := dict "join" .Values.test.join "publish" .Values.test.publish -}}
{{- $event := get (fromJson $text) "event" -}}
{{- if or (not (kindIs "string" $event)) (empty $event) -}}
{{- fail (printf "test.%s is nothing that a client could send: give a JSON object with an event, such as {\"event\": \"%s\"}." $name $name) -}}
{{- end -}}
{{- end -}}
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
  "SOCKETSPEC_MAX_NODE_BUFFER" "config.maxNodeBuffer"
  "SOCKETSPEC_MAX_CONNECTIONS" "config.maxConnections"
  "SOCKETSPEC_MAX_CONNECTIONS_PER_ADDRESS" "config.maxConnectionsPerAddress"
  "SOCKETSPEC_ACCEPTS_PER_SECOND" "config.acceptsPerSecond"
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

{{- define "cairn.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "cairn" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-cairn" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "cairn.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}

{{/* Labels by which a component is selected: (list $ "member"). They never change. */}}
{{- define "cairn.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: cairn
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object: (list $ "member"). */}}
{{- define "cairn.labels" -}}
{{- $root := index . 0 -}}
{{ include "cairn.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* Labels of a pod: (list $ "member"). The chart's version is none of them, or each upgrade of it would be a rollout. */}}
{{- define "cairn.podLabels" -}}
{{ include "cairn.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
{{ include "cairn.meshLabels" (index . 0) }}
{{- end -}}

{{/* No waypoint, no redirection, no sidecar: the pods carry traffic of meshes and are in none themselves. */}}
{{- define "cairn.meshLabels" -}}
istio.io/dataplane-mode: none
sidecar.istio.io/inject: "false"
{{- end -}}

{{- define "cairn.scrape" -}}
prometheus.io/scrape: "true"
prometheus.io/port: "15020"
prometheus.io/path: /stats/prometheus
{{- end -}}

{{- define "cairn.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 1337
runAsGroup: 1337
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "cairn.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "cairn.tokenSecret" -}}
{{- .Values.pool.tokenSecret.name | default (printf "%s-token" (include "cairn.fullname" .)) -}}
{{- end -}}

{{/* The Deployment that is scaled. */}}
{{- define "cairn.target" -}}
{{- include "cairn.fullname" . }}-members{{ if .Values.members.spot.enabled }}-spot{{ end }}
{{- end -}}

{{/* Members that are not the target's. */}}
{{- define "cairn.fixed" -}}
{{- if .Values.members.spot.enabled }}{{ .Values.members.replicas }}{{ else }}0{{ end -}}
{{- end -}}

{{- define "cairn.targetMin" -}}
{{- max 1 (sub (int .Values.scaler.policy.min) (int (include "cairn.fixed" .))) -}}
{{- end -}}

{{- define "cairn.targetMax" -}}
{{- sub (int .Values.scaler.policy.max) (int (include "cairn.fixed" .)) -}}
{{- end -}}

{{/* What scales up at once and down by a tenth a minute: the scaler has waited already. */}}
{{- define "cairn.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  selectPolicy: Max
  policies:
    - type: Percent
      value: 400
      periodSeconds: 15
    - type: Pods
      value: 40
      periodSeconds: 15
scaleDown:
  stabilizationWindowSeconds: 0
  selectPolicy: Max
  policies:
    - type: Percent
      value: 10
      periodSeconds: 60
    - type: Pods
      value: 1
      periodSeconds: 60
{{- end -}}

{{- define "join.account" -}}
{{- .Values.serviceAccount | default .Values.name -}}
{{- end -}}

{{/* By this label the registrar knows what is the pool's. */}}
{{- define "join.labels" -}}
app.kubernetes.io/part-of: cairn-pool
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* A Gateway and its Service: (list $ NAME SELECTOR). */}}
{{- define "join.gateway" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $namespace := $root.Release.Namespace -}}
# Exactly one address, a host name: istiod deploys nothing for it, and waits for endpoints of the Service.
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: {{ $name }}
  namespace: {{ $namespace }}
  labels:
    {{- include "join.labels" $root | nindent 4 }}
    istio.io/waypoint-for: service
spec:
  gatewayClassName: istio-waypoint
  addresses:
    - type: Hostname
      value: {{ $name }}.{{ $namespace }}.svc.{{ $root.Values.domain }}
  listeners:
    - name: mesh
      port: 15008
      protocol: HBONE
      allowedRoutes:
        namespaces:
          {{- if $root.Values.allow }}
          from: Selector
          selector:
            matchLabels:
              {{- toYaml $root.Values.allow | nindent 14 }}
          {{- else }}
          from: All
          {{- end }}
---
# No pods: its endpoints are the WorkloadEntries that istiod makes when members register.
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}
  namespace: {{ $namespace }}
  labels:
    {{- include "join.labels" $root | nindent 4 }}
    gateway.istio.io/managed: istio.io-mesh-controller
    gateway.networking.k8s.io/gateway-name: {{ $name }}
  {{- if $root.Values.preferClose }}
  annotations:
    networking.istio.io/traffic-distribution: PreferClose
  {{- end }}
spec:
  type: ClusterIP
  selector:
    {{ index . 2 }}: "true"
  ports:
    - name: hbone
      port: 15008
      targetPort: 15008
      protocol: TCP
      appProtocol: hbone
{{- end -}}

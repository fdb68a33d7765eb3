{{/* What a platform wants of a pod. Each takes (dict "root" $ "platform" NAME "spot" BOOL "component" NAME). */}}

{{- define "cairn.platform.labels" -}}
{{- $values := .root.Values.platforms -}}
{{- if eq .platform "eci" }}
alibabacloud.com/eci: "true"
{{- else if eq .platform "fargate" }}
{{- range $name, $value := $values.fargate.labels }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "cairn.platform.annotations" -}}
{{- $eci := .root.Values.platforms.eci -}}
{{- if eq .platform "eci" }}
k8s.aliyun.com/eci-use-specs: {{ $eci.specs | quote }}
{{- with $eci.vSwitches }}
k8s.aliyun.com/eci-vswitch: {{ . | quote }}
k8s.aliyun.com/eci-schedule-strategy: VSwitchRandom
{{- end }}
{{- with $eci.securityGroup }}
k8s.aliyun.com/eci-security-group: {{ . | quote }}
{{- end }}
{{- if $eci.imageCache }}
k8s.aliyun.com/eci-auto-imc: "true"
{{- end }}
{{- if and .spot $eci.spotStrategy }}
k8s.aliyun.com/eci-spot-strategy: {{ $eci.spotStrategy }}
k8s.aliyun.com/eci-spot-fallback: "true"
{{- with $eci.spotPriceLimit }}
k8s.aliyun.com/eci-spot-price-limit: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* nodeSelector, affinity, spread. All pods of a virtual node share one Node object, so there is nothing to spread over. */}}
{{- define "cairn.platform.placement" -}}
{{- if eq .platform "eci" }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - key: type
              operator: In
              values: [virtual-kubelet]
{{- else if and (eq .platform "plain") .component }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "cairn.selector" (list $.root $.component) | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "cairn.platform.nodeSelector" -}}
{{- if eq .platform "aks" }}
kubernetes.io/os: linux
type: virtual-kubelet
{{- end }}
{{- end -}}

{{- define "cairn.platform.tolerations" -}}
{{- if eq .platform "eci" }}
- key: virtual-kubelet.io/provider
  operator: Exists
  effect: NoSchedule
{{- else if eq .platform "aks" }}
- key: virtual-kubelet.io/provider
  operator: Exists
- key: azure.com/aci
  operator: Exists
  effect: NoSchedule
{{- end }}
{{- end -}}

{{/*
What istiod merges into what it renders: the keys are kinds of objects, the values are strategic merge patches as text.
(dict "root" $ "overlay" VALUES)
*/}}
{{- define "cairn.overlay" -}}
{{- $overlay := .overlay -}}
{{- $platform := dict "root" .root "platform" $overlay.platform "spot" ($overlay.spot | default false) "component" "" -}}
deployment: |
  spec:
    template:
      metadata:
        labels:
          app.kubernetes.io/name: cairn
          {{- with include "cairn.platform.labels" $platform | trim }}
          {{- . | nindent 10 }}
          {{- end }}
        {{- with include "cairn.platform.annotations" $platform | trim }}
        annotations:
          {{- . | nindent 10 }}
        {{- end }}
      spec:
        terminationGracePeriodSeconds: {{ $overlay.terminationGracePeriodSeconds }}
        {{- with include "cairn.pullSecrets" .root | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with include "cairn.platform.placement" $platform | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with include "cairn.platform.nodeSelector" $platform | trim }}
        nodeSelector:
          {{- . | nindent 10 }}
        {{- end }}
        {{- with include "cairn.platform.tolerations" $platform | trim }}
        tolerations:
          {{- . | nindent 10 }}
        {{- end }}
        containers:
          - name: istio-proxy
            image: {{ include "cairn.image" .root }}
            imagePullPolicy: {{ .root.Values.image.pullPolicy }}
            resources:
              {{- toYaml $overlay.resources | nindent 14 }}
            env:
              - name: TERMINATION_DRAIN_DURATION_SECONDS
                value: {{ sub (int $overlay.terminationGracePeriodSeconds) 5 | quote }}
              {{- range $key, $value := $overlay.env }}
              - name: {{ $key }}
                value: {{ $value | quote }}
              {{- end }}
{{- with $overlay.hpa }}
horizontalPodAutoscaler: |
  spec:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- with $overlay.pdb }}
podDisruptionBudget: |
  spec:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

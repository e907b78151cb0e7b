{{- define "vortex.selector" -}}
app.kubernetes.io/name: vortex-agent
app.kubernetes.io/component: agent
{{- end }}

{{- define "vortex.labels" -}}
{{ include "vortex.selector" . }}
app.kubernetes.io/part-of: vortex
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "covey.operator" -}}
{{ .Release.Name }}-operator
{{- end }}

{{- define "covey.selector" -}}
app.kubernetes.io/name: covey-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "covey.labels" -}}
{{ include "covey.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "covey.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{/* "yes" if monitoring is enabled, or by default if the cluster serves the kind (.kind); empty otherwise. */}}
{{- define "covey.monitored" -}}
{{- $enabled := .root.Values.monitoring.enabled -}}
{{- if eq $enabled nil -}}
{{- if .root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind) }}yes{{ end -}}
{{- else if $enabled -}}
yes
{{- end -}}
{{- end }}

{{/* The alert rules, with links to monitoring.grafanaUrl. */}}
{{- define "covey.rules" -}}
{{ .Files.Get "files/rules.yml" | replace " /d/covey-" (printf " %s/d/covey-" .Values.monitoring.grafanaUrl) }}
{{- end }}

{{/* The release's name, with "router" in it. A Service's name has no dots, which a release's may have. A Deployment's
     name has 52 characters at most, as its pods get a hash; Helm allows a release 53. */}}
{{- define "router.name" -}}
{{- $release := .Release.Name | replace "." "-" -}}
{{- if contains .Chart.Name $release -}}
{{- $release | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" ($release | trunc 45 | trimSuffix "-") .Chart.Name -}}
{{- end -}}
{{- end -}}

{{- define "router.selector" -}}
app.kubernetes.io/name: router
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "router.labels" -}}
{{ include "router.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* Requests for each pod that the autoscaler aims at: a share of the cap, rounded down, and at least 1. */}}
{{- define "router.target" -}}
{{- max 1 (div (mul (int64 .Values.maxConcurrency) (int64 .Values.autoscaling.targetPercent)) 100) -}}
{{- end -}}

{{- define "router.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  selectPolicy: Max
  policies:
    - {type: Percent, value: 100, periodSeconds: 15}
    - {type: Pods, value: 4, periodSeconds: 15}
scaleDown:
  stabilizationWindowSeconds: 300
  policies:
    - {type: Percent, value: 25, periodSeconds: 60}
{{- end -}}

{{- define "router.meta" -}}
name: {{ include "router.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "router.labels" . | nindent 2 }}
{{- end -}}

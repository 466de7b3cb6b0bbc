{{/* Name of the operator's objects. */}}
{{- define "rljob.name" -}}
{{- printf "%s-operator" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "rljob.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "rljob.name" .) -}}
{{- else -}}
{{- required "serviceAccount.name: is needed where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What finds the operator's pods. NetworkPolicies of jobs let pods with the first two labels ask masters for progress. */}}
{{- define "rljob.selector" -}}
app.kubernetes.io/name: rljob
app.kubernetes.io/component: operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* app.kubernetes.io/managed-by must not be rljob here: that marks the objects of jobs. */}}
{{- define "rljob.labels" -}}
{{ include "rljob.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Reference of one image: include "rljob.image" (list $ "master"). */}}
{{- define "rljob.image" -}}
{{- $top := index . 0 -}}{{- $name := index . 1 -}}
{{- $images := $top.Values.images -}}
{{- index $images $name | default (printf "%s/%s:%s" (trimSuffix "/" $images.registry) $name ($images.tag | default $top.Chart.AppVersion)) -}}
{{- end -}}

{{/* The operator's settings file. */}}
{{- define "rljob.settings" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- $images := dict -}}
{{- range $name := list "operator" "master" "reward" "trainer" "rollout" "combined" "sandbox" -}}
{{- $_ := set $images $name (include "rljob.image" (list $ $name)) -}}
{{- end -}}
{{- $election := mergeOverwrite (dict) ($settings.leaderElection | default dict) (dict "lease" (include "rljob.name" .)) -}}
{{- $_ := set $settings "images" $images -}}
{{- $_ := set $settings "leaderElection" $election -}}
{{- $_ := set $settings "namespaces" (.Values.namespaces | default list) -}}
{{- $_ := set $settings "operatorNamespace" .Release.Namespace -}}
{{- toYaml $settings -}}
{{- end -}}

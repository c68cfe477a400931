{{- define "flannel.labels" -}}
k8s-app: flannel
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "flannel.annotations" -}}
{{- with .Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* An image by its values, with the global registry in place of its own. */}}
{{- define "flannel.image" -}}
{{- $repository := .image.repository }}
{{- with .root.Values.global.imageRegistry }}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^[^/]*[.:][^/]*/|^localhost/" $repository "") }}
{{- end }}
{{- printf "%s:%s" $repository (.image.tag | default .root.Chart.AppVersion) }}
{{- end }}

{{- define "flannel.netConf" -}}
{{- $flannel := .Values.flannel }}
{{- $backend := dict "Type" $flannel.backend }}
{{- $port := ternary "ListenPort" "Port" (hasPrefix "wireguard" $flannel.backend) }}
{{- range $key, $value := dict $port $flannel.backendPort "VNI" $flannel.vni "GBP" $flannel.GBP "DirectRouting" $flannel.directRouting "MTU" $flannel.mtu }}
{{- if not (kindIs "invalid" $value) }}
{{- $_ := set $backend $key $value }}
{{- end }}
{{- end }}
{{- $conf := dict "Backend" (mergeOverwrite $backend (deepCopy ($flannel.backendConfig | default dict)) (dict "Type" $flannel.backend)) }}
{{- if .Values.podCidr }}
{{- $_ := set $conf "Network" .Values.podCidr }}
{{- else }}
{{- $_ := set $conf "EnableIPv4" false }}
{{- end }}
{{- if .Values.podCidrv6 }}
{{- $_ := set $conf "EnableIPv6" true }}
{{- $_ := set $conf "IPv6Network" .Values.podCidrv6 }}
{{- end }}
{{- if not (kindIs "invalid" $flannel.enableNFTables) }}
{{- $_ := set $conf "EnableNFTables" $flannel.enableNFTables }}
{{- end }}
{{- mustToPrettyJson (mergeOverwrite $conf (deepCopy ($flannel.netConf | default dict))) }}
{{- end }}

{{/* For containers that only write to folders of the host. */}}
{{- define "flannel.unprivileged" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
runAsUser: 0
{{- end }}

{{/* What all objects of this release are named after. */}}
{{- define "s3view.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "s3view.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/name: s3view
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What selects the pods of one component: a list of the chart's context and its name. */}}
{{- define "s3view.selector" -}}
{{- $context := index . 0 -}}
app.kubernetes.io/name: s3view
app.kubernetes.io/instance: {{ $context.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* An image: a list of the chart's context and the name below `images`. */}}
{{- define "s3view.image" -}}
{{- $context := index . 0 -}}
{{- $image := index $context.Values.images (index . 1) -}}
{{- $name := printf "%s:%s" $image.repository ($image.tag | default $context.Chart.AppVersion) -}}
{{- if $image.digest -}}{{- printf "%s@%s" $name $image.digest -}}{{- else -}}{{- $name -}}{{- end -}}
{{- end -}}

{{/* A service account's name: a list of the chart's context and the component. */}}
{{- define "s3view.serviceAccount" -}}
{{- $context := index . 0 -}}
{{- $component := index . 1 -}}
{{- $account := (index $context.Values $component).serviceAccount -}}
{{- if $account.create -}}
{{- $account.name | default (printf "%s-%s" (include "s3view.fullname" $context) $component) -}}
{{- else -}}
{{- $account.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* The bytes of a quantity as Kubernetes writes it. */}}
{{- define "s3view.bytes" -}}
{{- if kindIs "string" . -}}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" . -}}
{{- $unit := trimPrefix $number . -}}
{{- $factors := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- if or (not $number) (not (hasKey $factors $unit)) -}}
{{- fail (printf "%q is not a size; write a Kubernetes quantity, such as \"512Mi\"" .) -}}
{{- end -}}
{{- mulf (float64 $number) (index $factors $unit) | ceil | int64 -}}
{{- else -}}
{{- int64 . -}}
{{- end -}}
{{- end -}}

{{/*
The memory limit of the node plugin: its tmpfs counts, and 256Mi for all else. The plugin refuses to
start with less than 192Mi beside the store, so that is refused here too.
*/}}
{{- define "s3view.memoryLimit" -}}
{{- $store := dig "store" "memory" "size" "512Mi" .Values.config -}}
{{- $bytes := include "s3view.bytes" $store | int64 -}}
{{- $given := dig "limits" "memory" "" .Values.node.resources -}}
{{- if $given -}}
{{- if lt (include "s3view.bytes" $given | int64) (add $bytes 201326592 | int64) -}}
{{- fail (printf "node.resources.limits.memory %v must be at least 192Mi above config.store.memory.size %v" $given $store) -}}
{{- end -}}
{{- $given -}}
{{- else -}}
{{- printf "%dMi" (div (add $bytes 1048575) 1048576 | add 256) -}}
{{- end -}}
{{- end -}}

{{/*
"true" where tokens come among the secrets, and not in the volume context. An API server before 1.35
would drop the field, and the tokens would come where they do not count.
*/}}
{{- define "s3view.tokensInSecrets" -}}
{{- if .Values.csiDriver.tokenRequests -}}
{{- $wanted := .Values.csiDriver.serviceAccountTokenInSecrets | toString -}}
{{- $possible := semverCompare ">=1.35.0-0" .Capabilities.KubeVersion.Version -}}
{{- if and (eq $wanted "true") (not $possible) -}}
{{- fail (printf "csiDriver.serviceAccountTokenInSecrets: true needs Kubernetes 1.35, and this is %s; use auto or false" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and $possible (has $wanted (list "auto" "true")) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/*
The driver's configuration file as YAML: what the values say, and what the chart knows better. The
trust switches follow from the CSIDriver that this chart makes.
*/}}
{{- define "s3view.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $tokensInContext := and .Values.csiDriver.tokenRequests (not (include "s3view.tokensInSecrets" .)) -}}
{{- $ours := dict
      "driverName" .Values.driverName
      "kubeletDir" (printf "%s/pods" (trimSuffix "/" .Values.kubelet.dir))
      "keeper" (dict "socket" (include "s3view.keeperSocket" .) "holdFor" .Values.keeper.holdFor)
      "trust" (dict "podInfo" true "contextTokens" (ternary true false (not (empty $tokensInContext))))
      "store" (dict "disk" (dict "path" (include "s3view.diskPath" .)))
-}}
{{- if .Values.startupTaint.remove -}}
{{- $_ := set $ours "kubernetes" (dict "removeStartupTaint" true) -}}
{{- end -}}
{{- if .Values.metrics.enabled -}}
{{- $_ := set $ours "metrics" (dict "address" (printf "%s:%d" .Values.metrics.host (int .Values.metrics.port))) -}}
{{- end -}}
{{- mustMergeOverwrite $config $ours | toYaml -}}
{{- end -}}

{{/*
What of the configuration takes effect only in a plugin that is started with it: all but policy,
defaults, limits and authorization, and the CA bundles.
*/}}
{{- define "s3view.restartChecksum" -}}
{{- $config := omit (include "s3view.config" . | fromYaml) "policy" "defaults" "limits" "authorization" -}}
{{- list $config .Values.caBundles | toJson | sha256sum -}}
{{- end -}}

{{- define "s3view.keeperSocket" -}}
{{- printf "%s/keeper.sock" (trimSuffix "/" .Values.keeper.socketDir) -}}
{{- end -}}

{{- define "s3view.diskPath" -}}
{{- dig "store" "disk" "path" "" .Values.config | default (printf "%s/disk" (trimSuffix "/" .Values.stateDir)) -}}
{{- end -}}

{{/* Where the CSI socket is on the node. */}}
{{- define "s3view.pluginDir" -}}
{{- printf "%s/plugins/%s" (trimSuffix "/" .Values.kubelet.dir) .Values.driverName -}}
{{- end -}}

{{/* A sidecar of the node plugin, and the keeper: root without its powers. */}}
{{- define "s3view.rootWithoutPowers" -}}
# Root, because it uses sockets that only root may open; it has no powers beyond being their owner.
runAsUser: 0
runAsNonRoot: false
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- with .Values.seLinuxOptions }}
seLinuxOptions: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A container of the controller; user and seccomp profile are the pod's. */}}
{{- define "s3view.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{/* What the kubelet would mount into all containers of a pod, for some of them. */}}
{{- define "s3view.tokenVolume" -}}
name: token
projected:
  sources:
    - serviceAccountToken: { path: token, expirationSeconds: 3607 }
    - configMap: { name: kube-root-ca.crt, items: [{ key: ca.crt, path: ca.crt }] }
    - downwardAPI: { items: [{ path: namespace, fieldRef: { fieldPath: metadata.namespace } }] }
{{- end -}}

{{- define "s3view.tokenMount" -}}
{ name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true }
{{- end -}}

{{/* The configuration file and the CA bundles, as one directory that follows the ConfigMaps. */}}
{{- define "s3view.configVolume" -}}
name: config
projected:
  sources:
    - configMap:
        name: {{ include "s3view.fullname" . }}-config
    {{- if .Values.caBundles }}
    - configMap:
        name: {{ include "s3view.fullname" . }}-ca
        items:
          {{- range $name, $_ := .Values.caBundles }}
          - { key: {{ $name | quote }}, path: {{ printf "ca/%s" $name | quote }} }
          {{- end }}
    {{- end }}
{{- end -}}

{{/* The release's name, with "leasehold" in it. */}}
{{- define "leasehold.fullname" -}}
{{- if contains "leasehold" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-leasehold" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "leasehold.labels" -}}
app.kubernetes.io/part-of: leasehold
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "leasehold.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "leasehold.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "leasehold.region" -}}
{{- $region := .Values.region | default (regexReplaceAll "^https://sqs\\.([a-z0-9-]+)\\..*$" .Values.queueUrl "${1}") -}}
{{- if contains "/" $region -}}
{{- fail (printf "region is required: queueUrl %q does not contain it" .Values.queueUrl) -}}
{{- end -}}
{{- $region -}}
{{- end -}}

{{/* "true" if neither a command nor job types are set. */}}
{{- define "leasehold.isSample" -}}
{{- if not (or .Values.command .Values.jobTypes) }}true{{ end -}}
{{- end -}}

{{- define "leasehold.pushgateway" -}}
{{- if .Values.metrics.podMonitor.enabled -}}
{{- else if .Values.pushgateway.url -}}
{{- .Values.pushgateway.url -}}
{{- else if .Values.pushgateway.enabled -}}
{{- printf "http://%s-pushgateway:9091" (include "leasehold.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* The value of a setting, in leasehold's format. */}}
{{- define "leasehold.setting" -}}
{{- if kindIs "slice" . -}}
{{- join "," . -}}
{{- else if and (kindIs "float64" .) (eq . (floor .)) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* The spec of the working pod, or of the pod that runs `leasehold check` (`action` is "check"). */}}
{{- define "leasehold.pod" -}}
{{- $root := .root -}}
{{- $isCheck := eq .action "check" -}}
{{- $name := include "leasehold.fullname" $root -}}
{{- with $root.Values -}}
restartPolicy: Never
terminationGracePeriodSeconds: {{ int64 .terminationGracePeriodSeconds }}
serviceAccountName: {{ include "leasehold.serviceAccountName" $root }}
enableServiceLinks: false
securityContext:
  {{- toYaml .podSecurityContext | nindent 2 }}
  {{- if and .workDir.storageClass (not (hasKey .podSecurityContext "fsGroup")) }}
  fsGroup: {{ .podSecurityContext.runAsGroup | default 65532 | int64 }}
  {{- end }}
{{- with .imagePullSecrets }}
imagePullSecrets:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
initContainers:
- name: install
  image: {{ .leaseholdImage }}
  args: [install, /opt/leasehold]
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 32Mi}
  securityContext:
    {{- toYaml .securityContext | nindent 4 }}
  volumeMounts:
  - {name: leasehold, mountPath: /opt/leasehold}
{{- range .extraContainers }}
{{- /* A native sidecar does not keep the Job from completing. */}}
- {{ toYaml (merge (dict "restartPolicy" "Always") (deepCopy .)) | nindent 2 | trim }}
{{- end }}
containers:
- name: leasehold
  image: {{ .image }}
  {{- if $isCheck }}
  command: [/opt/leasehold/leasehold, check]
  {{- else if include "leasehold.isSample" $root }}
  command: [/opt/leasehold/leasehold, run, --, python3, /sample/process.py]
  {{- else if .command }}
  command: {{ concat (list "/opt/leasehold/leasehold" "run" "--") .command | toJson }}
  {{- else }}
  command: [/opt/leasehold/leasehold, run]
  {{- end }}
  envFrom:
  - configMapRef:
      name: {{ $name }}-settings
  {{- with .envFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  env:
  - name: LEASEHOLD_JOB_ID
    valueFrom:
      {{- if $isCheck }}
      fieldRef: {fieldPath: metadata.name}
      {{- else }}
      fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/job-name']"}
      {{- end }}
  - name: LEASEHOLD_POD_NAME
    valueFrom:
      fieldRef: {fieldPath: metadata.name}
  - name: LEASEHOLD_NAMESPACE
    valueFrom:
      fieldRef: {fieldPath: metadata.namespace}
  - {name: LEASEHOLD_TERMINATION_GRACE, value: {{ printf "%ds" (int64 .terminationGracePeriodSeconds) }}}
  {{- if not .workDir.storageClass }}
  - {name: LEASEHOLD_WORK_DIR_LIMIT, value: {{ .workDir.size | quote }}}
  {{- end }}
  {{- with .env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if not $isCheck }}
  ports:
  - {name: metrics, containerPort: 9464}
  readinessProbe:
    httpGet: {path: /readyz, port: metrics}
    periodSeconds: 1
    failureThreshold: 1
  {{- end }}
  resources:
    {{- if .workDir.storageClass }}
    {{- toYaml .resources | nindent 4 }}
    {{- else }}
    {{- toYaml (mergeOverwrite (deepCopy .resources) (dict "requests" (dict "ephemeral-storage" .workDir.size))) | nindent 4 }}
    {{- end }}
  securityContext:
    {{- toYaml .securityContext | nindent 4 }}
  volumeMounts:
  - {name: leasehold, mountPath: /opt/leasehold, readOnly: true}
  {{- if include "leasehold.isSample" $root }}
  - {name: sample, mountPath: /sample, readOnly: true}
  {{- else if .jobTypes }}
  - {name: job-types, mountPath: /etc/leasehold, readOnly: true}
  {{- end }}
  - {name: work, mountPath: /work}
  {{- if .mountpoint.bucket }}
  - {name: s3, mountPath: {{ .mountpoint.path }}, readOnly: true}
  {{- end }}
  {{- with .volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
- name: leasehold
  emptyDir: {}
{{- if include "leasehold.isSample" $root }}
- name: sample
  configMap:
    name: {{ $name }}-sample
{{- else if .jobTypes }}
- name: job-types
  configMap:
    name: {{ $name }}-job-types
{{- end }}
- name: work
  {{- if .workDir.storageClass }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        {{- if ne .workDir.storageClass "default" }}
        storageClassName: {{ .workDir.storageClass }}
        {{- end }}
        resources:
          requests:
            storage: {{ .workDir.size }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .workDir.size }}
  {{- end }}
{{- if .mountpoint.bucket }}
- name: s3
  persistentVolumeClaim:
    claimName: {{ $name }}-s3
    readOnly: true
{{- end }}
{{- with .volumes }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}
{{- end -}}

# Sourced by run.sh: what agents and operator ask the API server for, by its audit log. Agents: nothing, ever. An operator with nothing to do
# renews its lease; here it is also asked for certificates, which live for seconds, and removes identities of pods that are gone since a minute.
audit_policy() {
  cat > "$state/audit.yaml" << 'END'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, users: [system:serviceaccount:kube-system:tendril-agent, system:serviceaccount:kube-system:tendril-operator]}
- {level: None}
END
}

# asked ACCOUNT prints what it asked for, a line for each request: verb and resource.
asked() {
  sed -n "/\"username\":\"system:serviceaccount:kube-system:$1\"/"'s/.*"verb":"\([a-z]*\)".*"objectRef":{"resource":"\([a-z]*\)".*/\1 \2/p' "$state/log/audit"
}

requests() {
  local before idle=20
  sleep 5 # its lists, if it has just started
  before=$(asked tendril-operator | wc -l)
  [ "$before" -gt 0 ] # else the log says nothing of anybody
  sleep $idle
  asked tendril-operator | tail -n +$((before + 1)) | sort | uniq -c > "$state/idle"
  echo "       in $idle s of nothing to do the operator asked: $(awk '{ printf "%s%s %s %s", (NR > 1 ? ", " : ""), $1, $2, $3 }' "$state/idle")"
  [ "$(awk '$3 != "tokenreviews" && $2 " " $3 != "delete identities" { n += $1 } END { print n + 0 }' "$state/idle")" -le $((idle / 2 + 6)) ] # the lease every two seconds, Secret and ConfigMap of the authority, a watch that ends
  not grep -q '"username":"system:serviceaccount:kube-system:tendril-agent"' "$state/log/audit"
  echo "$(printf '%4d' $SECONDS) s  agents asked the API server for nothing"
}

# Sourced by run.sh: the store is for those who have a certificate, a node writes its own keys alone, and certificates are renewed before they end.
store=https://10.200.0.11:2379 publish=https://10.200.0.11:2380 certificate=/var/lib/tendril/certificate.pem

# called NODE CERTIFICATE URL MESSAGE prints how a call from a node ends; an empty message is one without fields.
called() { inside "$1" "$bin/probe" call "$3" "$state/authority.crt" "$2" "$4" 2>&1 || true; }

# field NUMBER TEXT is a field of a message, in hexadecimal.
field() { printf '%02x%02x' $(($1 << 3 | 2)) ${#2}; printf %s "$2" | od -An -tx1 | tr -d ' \n'; }

# put NODE CERTIFICATE KEY: a request, in the name of n1, to write a key; see PutRequest in api/store/v1/store.proto.
put() {
  local write
  write=$(field 1 "$3")
  called "$1" "$2" $publish/tendril.store.v1.Publish/Put "$(field 1 n1)12$(printf %02x $((${#write} / 2)))$write"
}

# expect WHAT PATTERN: standard input has it.
expect() {
  local got
  got=$(cat)
  grep -q "$2" <<< "$got" || { echo "FAIL: $1: got $got, want $2" >&2; return 1; }
}

until_when() { inside "$1" openssl x509 -in $certificate -noout -enddate; }
renewed() { [ "$(until_when "$1")" != "$2" ]; }

certificates() {
  local before range=/etcdserverpb.KV/Range all
  all=$(field 1 /tendril/v1/default/)$(field 2 /tendril/v1/default0)
  local ended='^probe: Post' # the server says why and closes; a client that still writes then may not come to read it
  kubectl -n kube-system get configmap tendril-authority -o 'jsonpath={.data.ca\.crt}' > "$state/authority.crt"
  called n1 $certificate $store$range $all | expect 'a node reads the store' 'status 0'
  called n1 $certificate $store$range $(field 1 /)$(field 2 0) | expect "a node reads what is others'" 'status 7 .*only below'
  called n1 '' $store$range $all | expect 'a stranger reads the store' "$ended"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=n1 -days 1 -keyout "$state/forged" -out "$state/forged.crt" 2> /dev/null
  cat "$state/forged.crt" >> "$state/forged"
  called n1 "$state/forged" $store$range $all | expect 'a certificate of nobody reads the store' "$ended"
  called n1 $certificate $store/etcdserverpb.KV/Put 0a012f | expect 'a node writes past the Publish service' 'status 7 .*only be read'
  put n1 $certificate acks/n1 | expect 'a node writes its own key' 'status 0'
  put n1 $certificate acks/n2 | expect "a node writes another node's key" 'status 7'
  put n2 $certificate acks/n1 | expect 'a node writes in the name of another' 'status 7 .*certificate is of .*n2'
  put n1 '' acks/n1 | expect 'a stranger writes' 'status 7 .*no verified certificate'
  called n1 '' $publish/tendril.store.v1.Authority/Issue '' | expect 'a stranger without a request' 'status 3'
  [ "$(inside n1 stat -c '%a %U' $certificate)" = '600 root' ]
  for node in n1 n2; do
    before=$(until_when $node)
    await 60 "next certificate of $node" renewed $node "$before"
  done
}

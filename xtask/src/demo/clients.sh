#!/bin/sh
# Three clients with three TLS stacks: the system's OpenSSL twice, and the one inside Node.
# usage: clients.sh PORT CERTIFICATE PYTHON
set -e
url="https://localhost:$1"

curl --silent --show-error --max-time 20 --ipv4 --cacert "$2" "$url/from-curl"

"$3" - "$1" "$2" <<'PYTHON'
import http.client, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2])
connection = http.client.HTTPSConnection("localhost", int(sys.argv[1]), timeout=20, context=context)
connection.request("POST", "/from-python", "a secret of Python")
print(connection.getresponse().read().decode(), end="")
connection.close()
PYTHON

NODE_EXTRA_CA_CERTS="$2" node -e '
const request = require("https").request(
  process.argv[1] + "/from-node", { method: "POST", family: 4, agent: false, timeout: 20000 },
  (response) => response.pipe(process.stdout));
request.end("a secret of Node");
' "$url"

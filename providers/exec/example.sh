#!/bin/sh
# An example of a command for the exec provider: it serves secrets from a
# directory, SECRETS_DIR (set it under environment:), where NAME.json holds the
# fields as a JSON object. Replace the lines marked (1) and (2) by your manager's
# own command line.
#
# It gets one line of JSON on standard input:
#   {"version":1,"operation":"fetch","ref":{"path":"NAME"},"have":"VERSION"}
# and prints one of these on standard output:
#   {"version":"…","fields":{"client_id":"…","client_secret":"…"}}
#   {"unchanged":true}
#   {"error":{"kind":"not_found"}}
# The kinds: not_found denied login_failed throttled unavailable disabled
# deleted expired not_yet_valid malformed. Also understood: "created",
# "not_before" and "expires" beside "version" (RFC 3339), {"base64":"…"} as the
# value of a field, "retry_after_seconds" in an error. A version is 1 to 128
# characters of A-Z a-z 0-9 . _ : - and tells nothing of the secret.
set -eu

member() { # the text of a member of the request; a real command uses a JSON parser
	printf '%s' "$request" | sed -n "s/.*\"$1\":\"\([A-Za-z0-9._:-]*\)\".*/\1/p"
}

IFS= read -r request
name=$(member path)
have=$(member have)
file="$SECRETS_DIR/$name.json"

if [ -z "$name" ] || [ ! -f "$file" ]; then
	echo '{"error":{"kind":"not_found"}}'
	exit 0
fi
version=$(stat -c %i-%Y "$file") # (1) the manager's name of the current version
if [ "$version" = "$have" ]; then
	echo '{"unchanged":true}'
	exit 0
fi
printf '{"version":"%s","fields":' "$version"
cat "$file" # (2) the fields, as a JSON object
printf '}\n'

#!/bin/sh
# Does one thing with clients/credential-broker.sh: driver.sh SECONDS ACTION CLIENT [URL]; says in JSON what came of it.
set -eu
cd "$(dirname "$0")/../../clients"
. ./credential-broker.sh
export BROKER_TIMEOUT="$1"
quoted() { tr -d '\n' | sed 's/[\\"]/\\&/g'; }
case $2 in
token) show() { printf '"token":"%s"' "$value"; } && command=broker_token ;;
headers) show() { printf '"headers":{%s}' "$(printf '%s\n' "$value" | sed 's/\([^:]*\): \(.*\)/"\1":"\2"/' | paste -sd ,)"; } && command=broker_headers ;;
curl) show() { printf '"status":200,"body":"%s"' "$(printf '%s\n' "$value" | quoted)"; } && command=broker_curl ;;
esac
shift 2
[ "$command" != broker_curl ] || set -- "$@" -d '{"functie":"bakker"}'
problem=$(mktemp)
trap 'rm -f "$problem"' EXIT
if value=$($command "$@" 2>"$problem"); then
	printf '{%s}\n' "$(show)"
	exit
fi
error=$(cat "$problem")
case $error in
'the API answered with status '*) printf '{"status":%s,"body":"moreInformation"}\n' "${error##* }" ;;
*'credential broker: '*)
	error=${error##*credential broker: }
	detail=${error#*: }
	after=$(printf '%s\n' "$detail" | sed -n 's/.*(retry after: \([0-9]*\) s)$/\1/p')
	printf '{"code":"%s","detail":"%s","retry_after":%s}\n' "${error%%: *}" "$(printf '%s\n' "${detail% (retry after:*}" | quoted)" "${after:-0}"
	;;
*) printf '%s\n' "$error" >&2 && exit 1 ;;
esac

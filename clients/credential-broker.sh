# shellcheck shell=sh
# Ask the credential broker for tokens, in scripts of any POSIX shell. Needs curl 7.55 or newer.
#
# Ask for every call to the API and keep nothing: the broker keeps tokens fresh, a script cannot.
#
#     set -eu
#     . ./credential-broker.sh
#     broker_curl vdab "$url"
#
#   broker_token CLIENT                 prints the access token
#   broker_headers CLIENT               prints what a call to the API needs, as lines for curl -H @-
#   broker_reject CLIENT TOKEN STATUS [MORE]   tells that the API refused a token; prints the answer, JSON
#   broker_curl CLIENT CURL-ARGUMENTS…  calls the API: curl -sSf with the headers. On its 401 the broker is told, and
#                                       the call repeated once if there is another token
#
# They fail with a message on standard error that says what to do, and print nothing then: never use their output
# without looking at their status (set -e does that for x=$(broker_token vdab), but not inside of a pipeline).
# Status, as of the command broker: 64 the request was not understood, 69 no broker answers, or something is wrong behind it,
# 75 try again later, 77 not allowed, quarantined, or a person has to act; 22 of broker_curl: the API refused, or did so still.
#
# Leave -f, -w and whatever reads standard input (-d @-) out of the arguments of broker_curl: it needs them. Without -L
# curl follows no redirect; with it, the API key would go to the other host, too. Answers are text.
#
# BROKER_TIMEOUT: seconds for each answer (10). BROKER_PATIENCE: seconds to spend, in all, on waiting as the broker's
# Retry-After says (10). Values go from command to command by standard input alone, never by arguments or files.

case $(command -v printf) in
/*)
	echo 'credential broker: this shell has no printf of its own, so tokens would be seen in arguments: use dash, bash or busybox sh' >&2
	return 69
	;;
esac

broker_socket() {
	if [ -n "${CREDENTIAL_BROKER_SOCKET:-}" ]; then
		printf '%s\n' "$CREDENTIAL_BROKER_SOCKET"
	elif [ -n "${XDG_RUNTIME_DIR:-}" ] && [ "$(id -u)" -ne 0 ] && [ -e "$XDG_RUNTIME_DIR/credential-broker/broker.sock" ]; then
		printf '%s\n' "$XDG_RUNTIME_DIR/credential-broker/broker.sock"
	else
		printf '%s\n' /run/credential-broker/broker.sock
	fi
}

broker_token() {
	broker_answer_=$(broker_ask_ "$1" token -H 'Accept: application/json') || return
	broker_value_=$(printf '%s\n' "$broker_answer_" | broker_member_ access_token)
	[ -n "$broker_value_" ] || broker_fail_ unreachable "the answer is not the broker's" || return
	printf '%s\n' "$broker_value_"
}

broker_headers() {
	broker_answer_=$(broker_ask_ "$1" headers -H 'Accept: text/plain') || return
	# An error page must not become headers, or nothing a bare call.
	[ -n "$broker_answer_" ] || broker_fail_ unreachable "the answer is empty" || return
	if printf '%s\n' "$broker_answer_" | grep -Eqv '^[A-Za-z0-9-]+: [ -~]+$'; then
		broker_fail_ unreachable "the answer is not the broker's"
		return
	fi
	printf '%s\n' "$broker_answer_"
}

broker_reject() {
	broker_rejection_ "$2" "$3" "${4:-}" |
		broker_ask_ "$1" reject -H 'Accept: application/json' -H 'Content-Type: application/json' --data-binary @-
}

broker_curl() {
	broker_client_=$1
	shift
	broker_sent_=$(broker_headers "$broker_client_") || return
	broker_got_=$(broker_call_ "$@") || return
	case $broker_got_ in
	*'
401') ;;
	*)
		broker_end_
		return
		;;
	esac
	broker_text_=${broker_got_%?401}
	broker_bearer_=$(printf '%s\n' "$broker_sent_" | sed -n 's/^[Aa]uthorization: [^ ]* //p')
	broker_more_=$(printf '%s\n' "$broker_text_" | broker_member_ moreInformation)
	broker_reject "$broker_client_" "$broker_bearer_" 401 "$broker_more_" >/dev/null || return
	broker_before_=$broker_sent_
	broker_sent_=$(broker_headers "$broker_client_") || return
	if [ "$broker_sent_" != "$broker_before_" ]; then
		broker_got_=$(broker_call_ "$@") || return
	fi
	broker_end_
}

# broker_call_ calls the API; its status is the last line.
broker_call_() {
	printf '%s\n' "$broker_sent_" | curl -sS -H @- -w '\n%{http_code}' "$@"
}

# broker_end_ prints the answer of the API, or fails as curl -f does.
broker_end_() {
	broker_status_=${broker_got_##*
}
	case $broker_status_ in
	[123]??) printf '%s\n' "${broker_got_%?"$broker_status_"}" ;;
	*)
		printf '%s\n' "the API answered with status $broker_status_" >&2
		return 22
		;;
	esac
}

# broker_ask_ CLIENT WHAT CURL-ARGUMENTS… prints the body of a good answer.
broker_ask_() {
	case $1 in
	'' | *[!A-Za-z0-9._-]*)
		broker_fail_ invalid_request "'$1' is no name of a client"
		return
		;;
	esac
	broker_path_=/v1/clients/$1/$2
	shift 2
	broker_input_=
	case " $* " in *' @- '*) broker_input_=$(cat) ;; esac
	broker_left_=${BROKER_PATIENCE:-10}
	while :; do
		broker_raw_=$(printf '%s' "$broker_input_" | curl -sS --max-time "${BROKER_TIMEOUT:-10}" --unix-socket "$(broker_socket)" \
			-w '\n%{http_code} %{content_type}' "$@" "http://localhost$broker_path_") ||
			broker_fail_ unreachable "no broker answers on $(broker_socket): is it running? (CREDENTIAL_BROKER_SOCKET names another socket)" || return
		broker_status_=${broker_raw_##*
}
		broker_raw_=${broker_raw_%?"$broker_status_"}
		case $broker_status_ in
		'200 application/json'* | '200 text/plain'*)
			printf '%s\n' "$broker_raw_"
			return
			;;
		*' application/problem+json'*) ;;
		*)
			broker_fail_ unreachable "the answer, with status ${broker_status_%% *}, is not the broker's"
			return
			;;
		esac
		broker_after_=$(printf '%s\n' "$broker_raw_" | sed -n 's/.*"retry_after": *\([0-9]\{1,6\}\).*/\1/p')
		case ${broker_status_%% *} in
		429 | 503)
			if [ "${broker_after_:-0}" -gt 0 ] && [ "$broker_after_" -le "$broker_left_" ]; then
				sleep "$broker_after_"
				broker_left_=$((broker_left_ - broker_after_))
				continue
			fi
			;;
		esac
		broker_identity_=$(printf '%s\n' "$broker_raw_" | broker_member_ identity)
		broker_clients_=$(printf '%s\n' "$broker_raw_" | sed -n 's/.*"clients": *\[\("[^]]*\)\].*/\1/p' | sed 's/"//g; s/,/, /g')
		broker_detail_=$(printf '%s\n' "$broker_raw_" | broker_member_ detail)
		broker_detail_=$broker_detail_${broker_identity_:+" (you are seen as: $broker_identity_${broker_clients_:+; you may use: $broker_clients_})"}
		broker_fail_ "$(printf '%s\n' "$broker_raw_" | broker_member_ code)" "$broker_detail_" "$broker_after_"
		return
	done
}

# broker_fail_ CODE DETAIL [RETRY-AFTER] says what is wrong, and gives its status.
broker_fail_() {
	printf 'credential broker: %s: %s%s\n' "$1" "$2" "${3:+ (retry after: $3 s)}" >&2
	case $1 in
	not_allowed | quarantined | api_key_rejected | login_required) return 77 ;;
	rate_limited | issuer_unavailable | provider_unavailable | audit_unavailable) return 75 ;;
	invalid_request | not_found | method_not_allowed) return 64 ;;
	credentials_rejected) [ "${3:-0}" -eq 0 ] || return 75 ;;
	esac
	return 69
}

# broker_member_ NAME prints a string member of a flat JSON object; \uXXXX is left as it is.
broker_member_() {
	sed -n 's/.*"'"$1"'": *"\(\([^"\\]\|\\.\)*\)".*/\1/p' | sed 's/\\\(["\\/]\)/\1/g'
}

# broker_rejection_ TOKEN STATUS MORE prints JSON. printf is part of the shell: no argument of it can be seen.
broker_rejection_() {
	broker_more_=$(printf '%.2000s' "$3" | tr -d '\000-\037' | sed 's/[\\"]/\\&/g')
	printf '{%s"status":%s,"more_information":"%s"}' "${1:+\"access_token\":\"$1\",}" "$2" "$broker_more_"
}

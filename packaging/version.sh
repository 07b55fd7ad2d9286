#!/bin/sh
# Prints the version of the packages, as Debian and RPM sort it: 1.2.3 for the
# tag v1.2.3, 1.2.3~rc.1 for v1.2.3-rc.1, 1.2.3+git5.HASH for five commits
# later, 0~gitDATETIME.HASH where there is no tag.
set -eu
dirty=
[ -z "$(git status --porcelain)" ] || dirty=.dirty
hash=$(git rev-parse --short=12 HEAD)
if ! described=$(git describe --tags --long --abbrev=12 --match 'v[0-9]*' 2>/dev/null); then
	echo "0~git$(TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --format=%cd).$hash$dirty"
	exit
fi
described=${described%-g*}
tag=${described%-*}
version=$(echo "${tag#v}" | sed 's/-/~/; s/-/./g')
if [ "${described##*-}" != 0 ]; then
	version="$version+git${described##*-}.$hash$dirty"
elif [ -n "$dirty" ]; then
	version="$version+git0.$hash$dirty"
fi
echo "$version"

#!/bin/sh
# SELinux's compiler, the interfaces of Debian's policy, that policy itself
# (unpacked into .real/selinux: it is for none of this machine), and what reads
# a policy. Their versions are the distribution's. Idempotent.
set -eu
dir=$(cd "$(dirname "$0")/../.." && pwd)/.real/selinux
for tool in checkmodule semodule_link semodule_expand semodule_unpackage sesearch selabel_lookup; do
	command -v $tool >/dev/null || missing=yes
done
if [ -n "${missing-}" ] || [ ! -e /usr/share/selinux/devel/Makefile ]; then
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends checkpolicy selinux-policy-dev selinux-utils semodule-utils setools
fi
[ ! -e "$dir/.done" ] || exit 0
rm -rf "$dir"
mkdir -p "$dir"
cd "$dir"
apt-get download -qq -o APT::Sandbox::User=root selinux-policy-default
dpkg-deb -x selinux-policy-default_*.deb root
for module in base apache unconfined; do
	bunzip2 -c "root/usr/share/selinux/default/$module.pp.bz2" >"$module.pp"
done
rm -rf root ./*.deb
touch .done

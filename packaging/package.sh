#!/usr/bin/env bash
# Makes the packages: deb, rpm and a tarball for each architecture, SBOMs and
# SHA256SUMS, in dist/packages or the directory that is given. The same commit
# gives the same bytes, wherever and whenever: nothing of this machine, its
# clock or its user gets into them.
#
# Build information of version control is left out: Go does not find it in every
# kind of working copy. The SBOM names the commit.
#
# VERSION=… names another version than packaging/version.sh; ARCHES=… fewer
# architectures, of which one is this machine's; NFPM=… is the nfpm to use.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C TZ=UTC CGO_ENABLED=0 GOOS=linux GOAMD64=v1 GOARM64=v8.0 GOFLAGS=-mod=readonly
umask 022
out=$(realpath -m "${1:-dist/packages}")
version=${VERSION:-$(packaging/version.sh)}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
revision=$(git rev-parse HEAD)
[ -z "$(git status --porcelain)" ] || revision=$revision-dirty
nfpm=$(realpath "${NFPM:?make package knows where nfpm is}")
arches=${ARCHES:-amd64 arm64}
installed=/usr/share/credential-broker
hostarch=$(go env GOHOSTARCH)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$out"
rm -f "$out"/credential-broker[-_]* "$out/SHA256SUMS"

# put MODE FILE… DIR: copies files as others are to find them.
put() {
	local mode=$1 dir=${*: -1}
	shift
	install -d -m 0755 "$dir"
	install -m "$mode" "${@:1:$#-1}" "$dir"
}

for arch in $arches; do
	mkdir "$work/$arch"
	GOARCH=$arch go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$version" -o "$work/$arch/" ./cmd/broker ./cmd/brokerd
done

for arch in $arches; do
	name=credential-broker-$version-linux-$arch
	root=$work/$name
	usr=$root/usr
	share=$usr/share/credential-broker
	doc=$usr/share/doc/credential-broker
	put 0755 "$work/$arch/broker" "$usr/bin"
	put 0755 "$work/$arch/brokerd" "$usr/libexec/credential-broker"
	put 0644 configs/systemd/*.service configs/systemd/*.socket "$usr/lib/systemd/system"
	install -D -m 0644 configs/systemd/sysusers.conf "$usr/lib/sysusers.d/credential-broker.conf"
	install -D -m 0644 configs/systemd/tmpfiles.conf "$usr/lib/tmpfiles.d/credential-broker.conf"

	put 0644 configs/systemd/drop-ins/*.conf "$share/drop-ins"
	put 0644 configs/polkit/*.rules "$share/polkit"
	put 0644 configs/selinux/credential_broker.* "$share/selinux"
	put 0644 configs/monitoring/dashboard.json configs/monitoring/rules.yaml "$share/monitoring"
	put 0644 clients/* "$share/clients"
	put 0644 configs/broker.schema.json api/openapi.yaml "$share"
	put 0644 packaging/broker.yaml "$share/examples"
	for example in configs/examples/*/; do
		cp -r --no-preserve=mode "$example" "$share/examples/"
	done
	cp -r --no-preserve=mode deploy/ansible "$share/"
	rm "$share/ansible/.ansible-lint"
	put 0755 providers/exec/example.sh "$share/examples/exec"

	for page in packaging/man/*.[158]; do
		install -d -m 0755 "$usr/share/man/man${page##*.}"
		gzip -9nc "$page" >"$usr/share/man/man${page##*.}/${page##*/}.gz"
	done
	mkdir -p "$usr"/share/{bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}
	"$work/$hostarch/broker" completion bash >"$usr/share/bash-completion/completions/broker"
	"$work/$hostarch/broker" completion zsh >"$usr/share/zsh/site-functions/_broker"
	"$work/$hostarch/broker" completion fish >"$usr/share/fish/vendor_completions.d/broker.fish"

	put 0644 docs/*.md SECURITY.md "$doc"
	put 0644 docs/issuers/*.md "$doc/issuers"
	# What a page links to is elsewhere here, or not here at all.
	sed -Ei 's#\]\(\.\./SECURITY\.md#](SECURITY.md#g
		s#\]\(\.\./providers/exec/example\.sh#]('"$installed"'/examples/exec/example.sh#g
		s#\]\(\.\./api/openapi\.yaml#]('"$installed"'/openapi.yaml#g
		s#\]\(\.\./configs/(examples|monitoring)#]('"$installed"'/\1#g
		s#\]\(\.\./deploy/ansible/#]('"$installed"'/ansible/#g
		s#\]\(\.\./clients/#]('"$installed"'/clients/#g
		s#\[([^]]*)\]\((\.\./|docs/)[^)]*\)#\1#g' "$doc"/*.md
	go run ./packaging/sbom -version "$version" -revision "$revision" \
		-sbom "$doc/sbom.cdx.json" -licences "$doc/third-party-licences.txt" "$usr/bin/broker" "$usr/libexec/credential-broker/brokerd"
	cp "$doc/sbom.cdx.json" "$out/$name.cdx.json"

	# The tarball: all that is the same on every distribution.
	find "$root" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
	tar -C "$work" --sort=name --format=ustar --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -cf - "$name" | gzip -9n >"$out/$name.tar.gz"

	put 0644 LICENSE "$work/extra"
	sed "s/@YEAR@/$(date -d "@$SOURCE_DATE_EPOCH" +%Y)/" packaging/deb/copyright >"$work/extra/copyright"
	put 0644 packaging/deb/lintian-overrides "$work/extra"
	gzip -9n >"$work/extra/changelog.Debian.gz" <<-END
		credential-broker ($version-1) unstable; urgency=medium

		  * Built from commit $revision.

		 -- $(sed -n 's/^maintainer: *"\(.*\)"/\1/p' packaging/nfpm.yaml)  $(date -Rd "@$SOURCE_DATE_EPOCH")
	END
	find "$work/extra" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
	sed "s|@ROOT@|$root|; s|@EXTRA@|$work/extra|; s|@VERSION@|$version|; s|@ARCH@|$arch|" packaging/nfpm.yaml >"$work/nfpm.yaml"
	for format in deb rpm; do
		"$nfpm" package --config "$work/nfpm.yaml" --packager $format --target "$out" >/dev/null
	done
	rm -rf "$root"
done
(cd "$out" && sha256sum -- credential-broker[-_]* >SHA256SUMS)
ls -l "$out"

#!/bin/sh
# Makes the fixtures anew, by three programs that are not ours. Every value is
# made up. Needs 7zz (7zip), bsdtar (libarchive-tools), zip and python3.
set -eu
cd "$(dirname "$0")"
rm -f ./*.zip ./*.docx
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=$PWD
cd "$work"

printf 'Beste,\r\n\r\nHierbij de gegevens van uw toepassing.\r\n\r\nClient ID: kMadeUpByATest0000001\r\nClient Secret: sMadeUpByATest/0000000000+0000000000=\r\n\r\nMet vriendelijke groeten\r\n' >credentials.txt
printf '{"client_id":"kMadeUpByATest0000001","client_secret":"sMadeUpByATest/0000000000+0000000000="}' >small.json
{ cat credentials.txt; for i in $(seq 60); do echo "Deze regel $i is opvulling, opdat het bestand wordt ingepakt."; done; } >long.txt

# 7-Zip: AE-2 with AES, deflated or stored; ZipCrypto.
for m in AES128 AES192 AES256 ZipCrypto; do
	7zz a -tzip -bd -bso0 -pgeheim-2026 -mem=$m "$out/7zip-$m.zip" long.txt
	7zz a -tzip -bd -bso0 -pgeheim-2026 -mem=$m -mx=0 "$out/7zip-$m-stored.zip" small.json
done
# libarchive: AE-1 or AE-2, data descriptors.
for m in aes128 aes256 traditional; do
	bsdtar -cf "$out/bsdtar-$m.zip" --format zip --options "zip:encryption=$m" --passphrase geheim-2026 long.txt
	bsdtar -cf "$out/bsdtar-$m-tiny.zip" --format zip --options "zip:encryption=$m,zip:compression=store" --passphrase geheim-2026 small.json
done
# Info-ZIP: ZipCrypto, the check byte from the time; zip64 from a pipe.
zip -q -P geheim-2026 "$out/infozip.zip" long.txt
zip -q -P "$(printf 'caf\202-2026')" "$out/infozip-cp437.zip" long.txt
zip -q -P "$(printf 'caf\351-2026')" "$out/infozip-latin1.zip" long.txt
zip -q -P 'café-2026' "$out/infozip-utf8.zip" long.txt
zip -q -P geheim-2026 - - <credentials.txt >"$out/infozip-pipe.zip"
zip -q "$out/plain.zip" credentials.txt

# An archive in an archive, in an archive.
cp "$out/7zip-AES256.zip" inner.zip
7zz a -tzip -bd -bso0 -pgeheim-2026 -mem=AES256 "$out/nested.zip" inner.zip
cp "$out/nested.zip" middle.zip
7zz a -tzip -bd -bso0 -pgeheim-2026 -mem=AES256 "$out/nested-twice.zip" middle.zip

# What macOS and Windows add, in folders.
mkdir -p map __MACOSX && cp credentials.txt map/
printf '\320\317\021\340' >map/Thumbs.db
printf '\000\000\000\001Bud1' >map/.DS_Store
printf '\000\005\026\007' >__MACOSX/._credentials.txt
7zz a -tzip -bd -bso0 -pgeheim-2026 -mem=AES256 "$out/noise.zip" map __MACOSX

# Two passwords in one archive.
7zz a -tzip -bd -bso0 -pgeheim-2026 -mem=AES256 "$out/two-passwords.zip" long.txt
7zz a -tzip -bd -bso0 -panders-2026 -mem=AES256 "$out/two-passwords.zip" small.json

# Methods that are not read.
7zz a -tzip -bd -bso0 -pgeheim-2026 -mem=AES256 -mm=BZip2 "$out/bzip2.zip" long.txt

# Hostile ones.
head -c 262144 /dev/zero >zeros.txt
zip -q "$out/bomb-ratio.zip" zeros.txt
head -c 300000 /dev/urandom >noise.bin
zip -q -0 "$out/bomb-size.zip" noise.bin && python3 - "$out/bomb-size.zip" <<'PY'
import sys
# The contents do not matter, only the size that is claimed: keep the fixture small.
data = open(sys.argv[1], 'rb').read()
end = data.rindex(b'PK\x05\x06'); start = int.from_bytes(data[end+16:end+20], 'little')
head = data[:40]
directory = bytearray(data[start:end]); tail = bytearray(data[end:]); tail[16:20] = len(head).to_bytes(4, 'little')
directory[20:24] = (300000).to_bytes(4, 'little')
open(sys.argv[1], 'wb').write(head + bytes(directory) + bytes(tail))
PY
mkdir many && for i in $(seq 65); do echo "$i" >"many/$i.txt"; done
zip -q "$out/many.zip" many/*.txt
python3 - "$out" <<'PY'
import sys, zipfile
for name, entry in [('traversal', '../../etc/cron.d/x'), ('traversal-windows', '..\\..\\x.txt'), ('absolute', '/etc/x'), ('drive', 'C:/x.txt')]:
    with zipfile.ZipFile(f'{sys.argv[1]}/{name}.zip', 'w') as z:
        z.writestr(zipfile.ZipInfo(entry), 'Client ID: kMadeUpByATest0000001')
with zipfile.ZipFile(f'{sys.argv[1]}/symlink.zip', 'w') as z:
    i = zipfile.ZipInfo('credentials.txt'); i.create_system = 3; i.external_attr = 0o120777 << 16
    z.writestr(i, '/etc/shadow')
with zipfile.ZipFile(f'{sys.argv[1]}/office.docx', 'w') as z:
    z.writestr('[Content_Types].xml', '<Types/>'); z.writestr('word/document.xml', '<w:t>Client ID: kMadeUpByATest0000001</w:t>')
with zipfile.ZipFile(f'{sys.argv[1]}/picture-and-text.zip', 'w') as z:
    z.writestr('logo.png', b'\x89PNG\r\n\x1a\n'); z.writestr('brief.pdf', '%PDF-1.7')
    z.writestr('cliënt.txt', 'Client ID: kMadeUpByATest0000001\nClient secret: sMadeUpByATest0000000000')
PY

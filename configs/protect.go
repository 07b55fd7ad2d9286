package configs

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"credentialbroker/internal/leak"
)

// expiresSoon is how long before its end a certificate or key is warned of.
const expiresSoon = 30 * 24 * time.Hour

// Protection is how reports are signed and encrypted.
func (l *Leak) Protection() leak.Protection { return l.protection }

// protect reads the certificates and keys. What has expired is taken, with a
// warning: neither the daemon nor a report waits for its renewal.
func (k *checker) protect(l *Leak) {
	l.protection.Recipients = map[string]*leak.PublicKey{}
	if l.Sign != nil {
		k.secret("leak.sign.secret", l.Sign.Secret)
		l.protection.Signer = k.publicKey("leak.sign.certificate_file", l.Sign.CertificateFile, leak.ReadSigner)
	}
	names := map[string]string{}
	for _, address := range slices.Sorted(maps.Keys(l.Encrypt)) {
		path, r := join("leak.encrypt", address), l.Encrypt[address]
		if k.bad[path] {
			continue
		}
		k.address(path, address)
		if r.CertificateFile != "" == (r.OpenPGPKeyFile != "") {
			k.always(path, quote(address)+" needs one key to encrypt to", "certificate_file or openpgp_key_file", "")
			continue
		}
		lower := strings.ToLower(address)
		k.when(names[lower] != "", path, "this is the same address as "+quote(names[lower]), "", "remove one of them")
		names[lower] = address
		file, read := "certificate_file", leak.ReadCertificate
		if r.CertificateFile == "" {
			file, read = "openpgp_key_file", leak.ReadOpenPGP
		}
		if key := k.publicKey(join(path, file), r.CertificateFile+r.OpenPGPKeyFile, read); key != nil {
			l.protection.Recipients[lower] = key
		}
	}
}

// publicKey reads a file that decides who can read a report, or whose it seems
// to be: it is held to the rules of a configuration's own files.
func (k *checker) publicKey(path, name string, read func([]byte) (*leak.PublicKey, error)) *leak.PublicKey {
	if name == "" || k.bad[path] || strings.HasPrefix(name, credentialsVariable) { // the last one outside of the unit
		return nil
	}
	if !filepath.IsAbs(name) {
		k.always(path, lastKey(path)+" is not an absolute path", "a path that begins with /", "")
		return nil
	}
	data, distrusted := readTrusted(name)
	if distrusted != nil {
		k.always(path, name+": "+distrusted.message, "", distrusted.hint)
		return nil
	}
	key, err := read(data)
	if err != nil {
		k.always(path, name+": "+err.Error(), "", "")
		return nil
	}
	return key
}

// protection warns of certificates and keys that expire, or are another's.
func (w *warner) protection(c *Config, now time.Time) {
	if c.Leak == nil {
		return
	}
	one := func(file, address string, key *leak.PublicKey) {
		if key == nil {
			return
		}
		at := place{file: &source{name: file}}
		switch end := key.Expires(); {
		case end.IsZero():
		case now.After(end):
			w.warn(at, fmt.Sprintf("the %s for %s has expired on %s; reports leave with it all the same", key, address, end.UTC().Format(time.DateOnly)), "renew it, and reload")
		case end.Sub(now) < expiresSoon:
			w.warn(at, fmt.Sprintf("the %s for %s expires on %s", key, address, end.UTC().Format(time.DateOnly)), "renew it, and reload")
		}
		if !key.Of(address) {
			named := list(key.Addresses(), "and")
			if named == "" {
				named = "no address"
			}
			w.warn(at, fmt.Sprintf("the %s is for %s, and is used for %s", key, named, address), "compare its fingerprint with its owner's word")
		}
	}
	p := c.Leak.protection
	if c.Leak.Sign != nil {
		one(c.Leak.Sign.CertificateFile, c.Leak.SMTP.From, p.Signer)
	}
	for _, address := range slices.Sorted(maps.Keys(c.Leak.Encrypt)) {
		r := c.Leak.Encrypt[address]
		one(r.CertificateFile+r.OpenPGPKeyFile, address, p.Recipients[strings.ToLower(address)])
	}
	told := map[string]bool{}
	for _, a := range slices.Concat(c.Leak.CopyTo, []string{c.Leak.SMTP.From, c.Leak.SMTP.ReplyTo}) {
		told[strings.ToLower(a)] = true
	}
	for _, client := range c.Clients {
		for _, a := range client.LeakContacts {
			told[strings.ToLower(a)] = true
		}
	}
	for _, address := range slices.Sorted(maps.Keys(c.Leak.Encrypt)) {
		if !told[strings.ToLower(address)] {
			w.warn(place{file: &source{name: c.file}}, fmt.Sprintf("leak.encrypt has a key for %s, who gets no report", quote(address)), "look for a mistake in the address")
		}
	}
}

// protection lists changes of what the files hold.
func (d *differ) protection(old, now *Leak) {
	if old == nil || now == nil {
		return
	}
	change := func(path string, a, b *leak.PublicKey) {
		if a != nil && b != nil && a.String() != b.String() {
			d.add(path, false, "%s -> %s", a, b)
		}
	}
	change("leak.sign", old.protection.Signer, now.protection.Signer)
	for _, address := range slices.Sorted(maps.Keys(now.protection.Recipients)) {
		change(join("leak.encrypt", address), old.protection.Recipients[address], now.protection.Recipients[address])
	}
}

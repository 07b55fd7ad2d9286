package configs

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestLooksSecret(t *testing.T) {
	p := newPatterns()
	for _, v := range []string{
		"eyJ0eXAiOiJqd3QifQ.eyJpc3MiOiJ4In0.c2ln", "AGE-SECRET-KEY-1QQPQYQSZQGP", "age-secret-key-pq-1qqp", "-----BEGIN RSA PRIVATE KEY-----",
		"hvs.CAESIJabcdefghijklmnop", "s.abcdefghijklmnopqrstuvwx", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
		"https://user:pass@host/", "kCVy8fpVSU50zFzi8TIC", "5f2d9c01e8b74a3690d1c2e3f4a5b6c7", "Bearer kCVy8fpVSU50zFzi8TIC", "key=kCVy8fpVSU50zFzi8TIC&x",
	} {
		if p.looksSecret("scope", v) == "" {
			t.Errorf("%s passes", v)
		}
	}
	for _, v := range []string{
		"", "vdab/prod", "https://op-derden.vdab.be/isam/sps/oauth/oauth20/token", "/etc/credential-broker/secrets/production-2024",
		"arn:aws:iam::123456789012:role/credential-broker-production-reader", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:Vdab/Prod-AbCdEf",
		"projects/corp-integrations-427/secrets/VdabProductionCredentials2024", "6b29fc40-ca47-1067-b31d-00dd010662da",
		"dv_magda_organisaties_verenigingen_verenigingen_v1_G", "php8.2-fpm.service", "integraties@corp.example",
		"IntegratieVacaturesProductieOmgeving2026", "corp-integrations.vault.azure.net", "0123.456.789", "+32 2 000 00 00",
		"an ordinary sentence with 12 words about the 2026 migration of Vault", "system-credential_broker\\x2dproduction.slice",
	} {
		if what := p.looksSecret("scope", v); what != "" {
			t.Errorf("%s is taken for %s", v, what)
		}
	}
	if p.looksSecret("version", "5f2d9c01e8b74a3690d1c2e3f4a5b6c7") != "" || p.looksSecret("audience", "kCVy8fpVSU50zFzi8TIC") != "" {
		t.Error("a version or client id is taken for a secret")
	}
}

// TestRandomIsNoticed counts over many draws; the bound is far below what a
// mistake would cost.
func TestRandomIsNoticed(t *testing.T) {
	p := newPatterns()
	for name, draw := range map[string]func([]byte) string{
		"hex":        hex.EncodeToString,
		"base64":     base64.StdEncoding.EncodeToString,
		"base64 url": base64.RawURLEncoding.EncodeToString,
	} {
		missed := 0
		for range 2000 {
			b := make([]byte, 24)
			_, _ = rand.Read(b)
			if p.looksSecret("x", draw(b)) == "" {
				missed++
			}
		}
		t.Logf("%s: %d of 2000 missed", name, missed)
		if missed > 20 {
			t.Errorf("%s: %d of 2000 missed", name, missed)
		}
	}
}

func TestMaskLine(t *testing.T) {
	p := newPatterns()
	for line, want := range map[string]string{
		`password: hunter2`:                             `password: *******`,
		`  "client_secret": "hunter2, too" # why`:       `  "client_secret": ************** # why`,
		`x: { token: a, user: b }`:                      `x: { token: *, user: b }`,
		`url=https://a/?api_key=abc`:                    `url=https://a/?api_key=***`,
		`a: kCVy8fpVSU50zFzi8TIC, b`:                    `a: ********************, b`,
		`Authorization: Bearer {access_token}`:          `Authorization: Bearer {access_token}`,
		`Authorization: Bearer hunter2`:                 `Authorization: **************`,
		`Authorization: Basic hunter2{access_token}`:    `Authorization: ***************************`,
		`secret: { provider: corp, path: vdab }`:        `secret: { provider: corp, path: vdab }`,
		`secret_id_file: ${CREDENTIALS_DIRECTORY}/x`:    `secret_id_file: ${CREDENTIALS_DIRECTORY}/x`,
		`token_endpoint: https://op-derden.vdab.be/x`:   `token_endpoint: https://op-derden.vdab.be/x`,
		`surfaces: [token, headers]`:                    `surfaces: [token, headers]`,
		`proxy: http://user:hunter2@proxy.example:3128`: `proxy: http://************@proxy.example:3128`,
	} {
		got := p.maskLine(line)
		if got != want || utf8.RuneCountInString(got) != utf8.RuneCountInString(line) {
			t.Errorf("%s\ngot  %s\nwant %s", line, got, want)
		}
	}
}

// FuzzLoad looks for panics, and for a secret that an error shows: one is put
// somewhere into whatever the fuzzer makes.
func FuzzLoad(f *testing.F) {
	seeds, _ := filepath.Glob("testdata/bad/*.txtar")
	more, _ := filepath.Glob("examples/*/broker.yaml")
	for _, name := range append(seeds, more...) {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text), uint64(len(text)))
	}
	dir := write(f, nil)
	file := filepath.Join(dir, "broker.yaml")
	f.Fuzz(func(t *testing.T, text string, n uint64) {
		r := mathrand.New(mathrand.NewPCG(n, 1))
		const canary = "kCVy8fpVSU50zFzi8TIC"
		at := r.IntN(len(text) + 1)
		for at > 0 && !strings.ContainsRune(" \n,[]{}:'\"", rune(text[at-1])) {
			at-- // within a word it would be another word
		}
		end := at
		for end < len(text) && !strings.ContainsRune(" \n,[]{}:'\"", rune(text[end])) {
			end++
		}
		for i, input := range []string{text, text[:at] + canary + text[end:]} {
			if err := os.WriteFile(file, []byte(input), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := Load(file, Options{Offline: true})
			if err == nil {
				_ = c.Diff(&Config{})
				_ = c.Warnings(someNames{})
				continue
			}
			if p := (Problems)(nil); !errors.As(err, &p) {
				t.Fatalf("not Problems: %T", err)
			}
			if i == 1 && strings.Contains(err.Error(), canary) {
				t.Errorf("the error shows the secret:\n%v", err)
			}
			if out := fmt.Sprint(err); !utf8.ValidString(out) || strings.ContainsFunc(out, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }) {
				t.Errorf("the error holds control characters: %q", out)
			}
		}
	})
}

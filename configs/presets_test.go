package configs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"credentialbroker/oidc"
)

func TestPresets(t *testing.T) {
	want := []string{"digitaal-vlaanderen", "digitaal-vlaanderen-test", "geosecure", "geosecure-test", "mijnklantportaal", "mijnklantportaal-api-key", "oauth2",
		"vdab-api-key", "vdab-api-key-test", "vdab-production", "vdab-test", "zgw"}
	if !slices.Equal(Presets(), want) {
		t.Fatalf("%v", Presets())
	}
	for _, name := range want {
		p, err := readPreset(newReport(), name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		keys := map[string]bool{}
		for _, v := range p.Values {
			keys[v.Key] = true
			if v.Source == "" || v.Value == "" {
				t.Errorf("%s: %s is %q from %q", name, v.Key, v.Value, v.Source)
			}
		}
		states := []string{"grant", "headers", "secrets", "rotation.kind", "rotation.steps"}
		if name != "oauth2" {
			states = append(states, "prove")
			switch p.settings.Grant { //nolint:exhaustive // the presets have no other
			case oidc.NoGrant:
				states = append(states, "requires")
			case oidc.ClientCredentials:
				states = append(states, "token_endpoint", "client_auth", "leak_contacts")
			case oidc.AuthorizationCode:
				states = append(states, "token_endpoint", "client_auth", "authorization_endpoint")
			}
		}
		if strings.HasPrefix(name, "vdab-") {
			states = append(states, "requires", "key_rejected", "leak_contacts")
		}
		if p.settings.ClientAuth == oidc.PrivateKeyJWT {
			states = append(states, "assertion.audience", "assertion.lifetime", "assertion.key_id")
		}
		for _, key := range states {
			if !keys[key] {
				t.Errorf("%s does not state %s", name, key)
			}
		}
	}
}

// TestPairs holds each preset against that of the other environment: they
// differ in hosts and names alone.
func TestPairs(t *testing.T) {
	for test, production := range map[string]string{"vdab-test": "vdab-production", "vdab-api-key-test": "vdab-api-key",
		"digitaal-vlaanderen-test": "digitaal-vlaanderen", "geosecure-test": "geosecure"} {
		a, err := readPreset(newReport(), test)
		if err != nil {
			t.Fatal(err)
		}
		b, err := readPreset(newReport(), production)
		if err != nil {
			t.Fatal(err)
		}
		same := strings.NewReplacer("op-derden-cbt.", "op-derden.", "authenticatie-ti.", "authenticatie.", "https://beta.oauth.", "https://oauth.", "openservices-test", "openservices", "environment [test]", "environment [production]")
		text := func(values []Stated) (all []string) {
			for _, v := range values {
				all = append(all, same.Replace(fmt.Sprint(v.Key, " ", v.lines())))
			}
			return all
		}
		if x, y := text(append(a.Values, a.Notes...)), text(append(b.Values, b.Notes...)); !slices.Equal(x, y) {
			t.Errorf("%s and %s differ:\n%s\n%s", test, production, strings.Join(x, "\n"), strings.Join(y, "\n"))
		}
	}
}

// TestShow holds the two presets of VDAB against the words of its guide.
func TestShow(t *testing.T) {
	for name, host := range map[string]string{"vdab-test": "op-derden-cbt.vdab.be", "vdab-production": "op-derden.vdab.be"} {
		var text, asJSON strings.Builder
		if err := errors.Join(Show(&text, name, false), Show(&asJSON, name, true)); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"https://" + host + "/isam/sps/oauth/oauth20/token", "client_secret_post", "ict_iam@vdab.be", "security@vdab.be",
			"X-IBM-Client-Id", "{api_key}", "Bearer {access_token}", "Toegang tot VDAB-api's, §4.3", "15m", "Invalid client id or secret"} {
			if !strings.Contains(text.String(), want) || !strings.Contains(asJSON.String(), want) {
				t.Errorf("%s does not show %s", name, want)
			}
		}
	}
	if err := Show(&strings.Builder{}, "vdab-prod", false); err == nil || !strings.Contains(err.Error(), `did you mean "vdab-production"`) {
		t.Errorf("%v", err)
	}
}

// TestShowIsGolden keeps every stated value and source in sight of a review.
func TestShowIsGolden(t *testing.T) {
	const file = "testdata/presets-show.golden"
	var b strings.Builder
	for _, name := range Presets() {
		if err := Show(&b, name, false); err != nil {
			t.Fatal(err)
		}
		b.WriteString("\n")
	}
	if update() {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != b.String() {
		t.Errorf("%s differs (%v):\n%s", file, err, b.String())
	}
}

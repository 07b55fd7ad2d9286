package configs

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestPresets(t *testing.T) {
	want := []string{"digitaal-vlaanderen", "digitaal-vlaanderen-test", "geosecure", "geosecure-test", "mijnklantportaal", "oauth2", "vdab-production", "vdab-test", "zgw"}
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
		for _, key := range []string{"grant", "requires", "headers", "prove", "secrets", "rotation.kind", "rotation.steps"} {
			if !keys[key] {
				t.Errorf("%s does not state %s", name, key)
			}
		}
		if p.settings.Grant == "client_credentials" && name != "oauth2" {
			if !keys["token_endpoint"] || !keys["client_auth"] || !keys["leak_contacts"] {
				t.Errorf("%s does not say where and how to ask, and whom to tell of a leak", name)
			}
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
			"X-IBM-Client-Id", "{api_key}", "Bearer {access_token}", "Toegang tot VDAB-api's, §4.3", "15m"} {
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

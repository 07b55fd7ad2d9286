//go:build real

package issuers

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"credentialbroker/api/client"
)

// leaks looks for everything that was hidden where it must not be. It ends the
// daemon.
func (w *world) leaks(t *testing.T) {
	t.Helper()
	places := map[string][]byte{"status": []byte(w.broker(t, "status")), "status --json": []byte(w.broker(t, "status", "--json"))}
	if out := w.broker(t, "audit", "verify"); !strings.Contains(out, "intact") {
		t.Errorf("audit verify: %s", out)
	}
	metrics, err := (&client.Admin{Socket: w.path("admin.sock")}).Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	places["metrics"] = metrics
	places["audit export"] = []byte(w.broker(t, "audit", "export", "--format", "csv"))
	w.end(syscall.SIGTERM)
	places["log"] = []byte(w.log.String())
	err = filepath.WalkDir(w.path("state"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		places[path], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(w.hidden) < 3 || len(places) < 7 {
		t.Fatalf("%d secrets and %d places are too few to be all", len(w.hidden), len(places))
	}
	for value, what := range w.hidden {
		if len(value) < 8 {
			if value != "" {
				t.Errorf("%s is too short to be searched for", what)
			}
			continue
		}
		for how, needles := range spellings(t, value) {
			for place, text := range places {
				for _, needle := range needles {
					if bytes.Contains(text, []byte(needle)) {
						t.Errorf("%s holds %s (%s)", place, what, how)
					}
				}
			}
		}
	}
	t.Logf("%d secrets, %d places", len(w.hidden), len(places))
}

// spellings are the ways in which a value might show. Inside of longer base64
// it starts at any of three places, so its first and last letters are left out.
func spellings(t *testing.T, value string) map[string][]string {
	t.Helper()
	inJSON, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{"in clear": {value, strings.Trim(string(inJSON), `"`)}, "hex": {hex.EncodeToString([]byte(value))}}
	for name, enc := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
		for skip := range 3 {
			text := enc.EncodeToString(append(make([]byte, skip), value...))
			out[name] = append(out[name], text[4:len(text)-2])
		}
	}
	if len(value) > 200 { // a part of it is enough
		out["in part"] = []string{value[60:124]}
		for name, enc := range map[string]*base64.Encoding{"base64, in part": base64.StdEncoding, "base64url, in part": base64.URLEncoding} {
			out[name] = []string{enc.EncodeToString([]byte(value[60:120])), enc.EncodeToString([]byte(value[61:121])), enc.EncodeToString([]byte(value[62:122]))}
		}
	}
	return out
}

package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/scan"
	"credentialbroker/internal/secret"
)

// finds scans text as broker scan does, from the filter on, and says what it
// finds, sorted.
func (w *world) finds(text string) []string {
	w.t.Helper()
	dir := w.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.log"), []byte("before\n"+text+"\nafter\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	filter, _ := w.b.Scan()
	var list []string
	s, err := scan.New(scan.Config{Filter: filter, Paths: []string{dir}, Workers: 1,
		Confirm: func(_ context.Context, c []scan.Candidate) ([][]scan.Match, error) {
			return w.b.ConfirmFind(w.caller, c), nil
		}})
	if err != nil {
		w.t.Fatal(err)
	}
	report, err := s.Run(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range report.Findings {
		state := "live"
		if f.Retired {
			state = "retired"
		}
		list = append(list, fmt.Sprintf("%s %s %s", f.Client, f.Field, state))
	}
	slices.Sort(list)
	return list
}

func (w *world) wantFinds(text string, want ...string) {
	w.t.Helper()
	if got := w.finds(text); !slices.Equal(got, want) {
		w.t.Errorf("found %q, want %q", got, want)
	}
}

// reveal is a value as it might stand in a log.
func reveal(v secret.Secret) (s string) {
	_ = v.Use(func(b []byte) error { s = string(b); return nil })
	return s
}

// What serves is found; what was replaced is found as retired, whether a scan
// has looked for it before or not, until it is forgotten.
func TestScan(t *testing.T) {
	for _, before := range []bool{false, true} {
		inWorld(t, func(w *world) {
			first := reveal(w.mustGet().Token.Access)
			if before {
				w.wantFinds(theSecret+" "+theKey+" "+first+" "+theID, "vdab access_token live", "vdab api_key live", "vdab client_secret live")
			}
			w.secret("second-secret")
			w.issuer.SetSecret(theID, "second-secret", true)
			if _, err := w.b.Rotate(w.t.Context(), "vdab", Rotation{}); err != nil {
				t.Fatal(err)
			}
			w.mustGet()
			time.Sleep(time.Hour)
			synctest.Wait()
			// The key is the same in both versions: it is live, and said once.
			w.wantFinds(theSecret+" "+theKey, "vdab api_key live", "vdab client_secret retired")
			w.wantFinds("second-secret "+first, "vdab access_token retired", "vdab client_secret live")
			time.Sleep(8 * 24 * time.Hour)
			w.wantFinds(theSecret+" "+first, "vdab client_secret retired")
			time.Sleep(83 * 24 * time.Hour)
			w.wantFinds(theSecret+" second-secret", "vdab client_secret live")
		})
	}
}

// The values of a client that is gone are retired, whether a scan has looked
// for them before or not; those of one that stays are not, however it is
// configured.
func TestScanAfterReload(t *testing.T) {
	for _, before := range []bool{false, true} {
		inWorld(t, func(w *world) {
			token := reveal(w.mustGet().Token.Access)
			list := w.config()
			list[0].Owner.Contact = "somebody else"
			if err := w.b.Apply(list); err != nil {
				t.Fatal(err)
			}
			if before {
				w.wantFinds(theSecret+" "+token, "vdab access_token live", "vdab client_secret live")
			}
			if err := w.b.Apply(nil); err != nil {
				t.Fatal(err)
			}
			w.b.Flush()
			synctest.Wait()
			w.wantFinds(theSecret+" "+token, "vdab access_token retired", "vdab client_secret retired")
		})
	}
}

// A value that nobody could tell from other text is not looked for, and that is
// said.
func TestScanSaysWhatItCannotFind(t *testing.T) {
	inWorld(t, func(w *world) {
		w.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": theSecret, "api_key": "short"})
		if _, _, err := w.b.clients.Load().byName["vdab"].cred.Accept(w.t.Context()); err != nil {
			t.Fatal(err)
		}
		_, cannot := w.b.Scan()
		if len(cannot) != 1 || cannot[0].Field != "api_key" || cannot[0].Client != "vdab" || !strings.Contains(cannot[0].Reason, "8 bytes") {
			t.Errorf("%+v", cannot)
		}
	})
}

// A find is an alarm, once an hour for each field, and a retired value does not
// keep a live one quiet. Nothing of a value is in the log.
func TestFindsAreAlarms(t *testing.T) {
	inWorld(t, func(w *world) {
		token := reveal(w.mustGet().Token.Access)
		w.finds(theSecret)
		w.finds(theSecret + " " + token)
		want := func(n int) {
			t.Helper()
			if got := w.events()[audit.SecretFound]; got != n {
				t.Errorf("%d alarms, want %d", got, n)
			}
		}
		time.Sleep(time.Minute)
		want(2)
		w.secret("second-secret")
		w.issuer.SetSecret(theID, "second-secret", true)
		if _, err := w.b.Rotate(w.t.Context(), "vdab", Rotation{}); err != nil {
			t.Fatal(err)
		}
		w.finds(theSecret)
		time.Sleep(time.Minute)
		want(3)
		time.Sleep(time.Hour)
		w.finds(theSecret)
		time.Sleep(time.Minute)
		want(4)
		for e, err := range audit.Read(filepath.Join(w.dir, "audit"), 0) {
			if err != nil {
				t.Fatal(err)
			}
			line, _ := json.Marshal(e)
			if strings.Contains(string(line), theSecret) || strings.Contains(string(line), token) {
				t.Errorf("a value is in the log: %s", e.Type)
			}
			if e.Type != audit.SecretFound {
				continue
			}
			if e.Client != "vdab" || e.Code == "" || e.Actor == nil || e.Actor.UID != w.caller.UID || e.Detail["alarm"] == "" || len(e.Detail["alarm"]) > 256 {
				t.Errorf("%s", line)
			}
			if (e.Code == "access_token") != (e.Fingerprint != "") {
				t.Errorf("%s", line)
			}
		}
	})
}

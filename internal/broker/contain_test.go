package broker

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// A quarantined client hands nothing out, on no surface, and its tokens are
// not renewed; released, it serves again. Others go on.
func TestContain(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		w.edit = func(list []Client) []Client {
			other := list[0]
			other.Name = "other"
			list[0].KeepWarm = true
			return append(list, other)
		}
		w.restart()
		w.mustGet()
		w.b.Contain(map[string]string{"vdab": "2026-0007"})
		_, err := w.get(Request{})
		wantCode(t, err, client.Quarantined)
		_, err = w.get(Request{Surface: access.Headers})
		wantCode(t, err, client.Quarantined)
		_, err = w.b.APIKey(t.Context(), w.caller, "vdab")
		wantCode(t, err, client.Quarantined)
		_, err = w.b.Reject(t.Context(), w.caller, Rejection{Client: "vdab", Status: 401, Fingerprint: "x"})
		wantCode(t, err, client.Quarantined)
		if s := w.b.Status(); s[1].Quarantined != "2026-0007" || s[1].Problem == nil || s[1].Problem.Code != client.Quarantined || s[0].Problem != nil {
			t.Errorf("status %+v", s)
		}
		if r := w.b.Ready(w.caller); r.Ready {
			t.Error("a caller of a quarantined client is told that it is ready")
		}
		minted := w.issuer.Stats().Minted
		time.Sleep(time.Hour)
		if n := w.issuer.Stats().Minted - minted; n != 0 {
			t.Errorf("%d tokens were fetched for nobody", n)
		}
		if _, err = w.get(Request{Client: "other"}); err != nil {
			t.Errorf("another client: %v", err)
		}
		minted = w.issuer.Stats().Minted
		w.b.Contain(nil)
		time.Sleep(time.Second)
		if n := w.issuer.Stats().Minted - minted; n != 1 {
			t.Errorf("%d tokens were fetched after the release, want that which is kept warm", n)
		}
		w.mustGet()
		w.stop()
		if n := w.events(); n[audit.AccessQuarantined] != 4 {
			t.Errorf("%d refusals recorded, want each kind once", n[audit.AccessQuarantined])
		}
		w.start()
	})
}

// Who may not use the client does not learn that it is quarantined.
func TestContainedIsAfterDenied(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(func(c *Client) { c.Allow[0].User = "65533" })
		w.b.Contain(map[string]string{"vdab": "2026-0007"})
		_, err := w.get(Request{})
		wantCode(w.t, err, client.NotAllowed)
	})
}

// What waits for its record when the quarantine comes does not leave.
func TestContainStopsWhatIsUnderWay(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		w.issuer.Set(fake.Fault{Delay: 5 * time.Second})
		got := make(chan error, 1)
		go func() {
			_, err := w.get(Request{})
			got <- err
		}()
		synctest.Wait()
		w.b.Contain(map[string]string{"vdab": "2026-0007"})
		wantCode(t, <-got, client.Quarantined)
	})
}

// A place is contained under whatever name a reload gives it, at once, and no
// other place is.
func TestContainedPlace(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		w.mustGet()
		w.b.Contain(map[string]string{SecretPlace("store", providers.Ref{Path: "vdab", Version: "7"}): "2026-0007"})
		_, err := w.get(Request{})
		wantCode(t, err, client.Quarantined)
		list := w.config()
		list[0].Name = "renamed"
		elsewhere := list[0]
		elsewhere.Name, elsewhere.ProviderName = "elsewhere", "store-2"
		if err := w.b.Apply(append(list, elsewhere)); err != nil {
			t.Fatal(err)
		}
		_, err = w.get(Request{Client: "renamed"})
		wantCode(t, err, client.Quarantined)
		if _, err = w.get(Request{Client: "elsewhere"}); err != nil {
			t.Error(err)
		}
		if got := w.b.At(SecretPlace("store", providers.Ref{Path: "vdab"})); !slices.Equal(got, []string{"renamed"}) {
			t.Errorf("at the place: %v", got)
		}
		w.b.Contain(nil)
		if _, err = w.get(Request{Client: "renamed"}); err != nil {
			t.Error(err)
		}
	})
}

func TestSharing(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		w.store.Set("copy", map[string]string{"client_id": "x", "client_secret": theSecret, "api_key": "k2"})
		w.store.Set("key", map[string]string{"client_id": "x", "client_secret": "s", "api_key": theKey})
		w.store.Set("apart", map[string]string{"client_id": theID, "client_secret": "s2", "api_key": "k3"})
		others := fake.NewStore() // other values at the same path
		others.Set("vdab", map[string]string{"client_id": theID, "client_secret": "s4", "api_key": "k4"})
		w.edit = func(list []Client) []Client {
			at := func(name, provider string, spec providers.Spec) {
				c := list[0]
				if name == "manager" || name == "mount" {
					c.Provider = others
				}
				c.Name, c.ProviderName, c.Rotation.Spec = name, provider, spec
				c.Issuer = &oidc.Profile{TokenEndpoint: "https://issuer.example" + fake.TokenPath}
				list = append(list, c)
			}
			ref := func(path string) providers.Spec { return providers.Spec{Ref: providers.Ref{Path: path}} }
			at("same", "store", ref("vdab"))
			at("copy", "elsewhere", ref("copy"))
			at("key", "elsewhere", ref("key"))
			at("apart", "elsewhere", ref("apart"))
			at("number", "elsewhere", ref("vdab-2"))
			at("manager", "elsewhere", ref("vdab"))
			at("mount", "store", providers.Spec{Ref: providers.Ref{Mount: "kv", Path: "vdab"}})
			at("said", "store", providers.Spec{Ref: providers.Ref{Mount: "secret", Path: "vdab", Version: "1"}})
			return list
		}
		w.restart()
		for _, name := range []string{"vdab", "copy", "key", "apart", "manager", "mount"} {
			if err := w.b.clients.Load().byName[name].cred.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := w.b.Sharing("vdab"), []string{"copy", "key", "said", "same", "vdab"}; !slices.Equal(got, want) {
			t.Errorf("shared by %v, want %v", got, want)
		}
		if got := w.b.Sharing("apart"); !slices.Equal(got, []string{"apart"}) {
			t.Errorf("apart is shared by %v", got)
		}
	})
}

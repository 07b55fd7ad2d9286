package response

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// elsewhere gets a token with the client's secret, as a thief does.
func (d *desk) elsewhere() string {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodPost, "http://127.0.0.1/as/token", strings.NewReader(url.Values{"grant_type": {"client_credentials"}}.Encode()))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(theID, theSecret)
	resp, err := d.issuer.RoundTripper().RoundTrip(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Token == "" {
		d.t.Fatalf("%s, %v", body, err)
	}
	return answer.Token
}

func (d *desk) judge(token, name string) (client.Whois, error) {
	sum := sha256.Sum256([]byte(token))
	return d.r.Judge(d.t.Context(), secret.New([]byte(token)), base64.RawURLEncoding.EncodeToString(sum[:]), name)
}

// selfSigned is a JWT of VNG's form that somebody signs with key.
func selfSigned(key string, header, claims map[string]any) string {
	part := func(v any) string {
		b, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	input := part(header) + "." + part(claims)
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(input))
	return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// A token with the issuer's signature that this host never issued: one draft,
// and one mail to the organisation alone.
func TestForeignToken(t *testing.T) {
	inDesk(t, func(d *desk) {
		d.mustGet()
		time.Sleep(time.Hour)
		token := d.elsewhere()
		time.Sleep(time.Minute)
		w, err := d.judge(token, "")
		if err != nil || !w.Foreign || w.Client != "vdab" || w.JTI == "" || w.Issued.IsZero() || !w.Valid || w.Incident == "" ||
			w.Reason != "this token names client vdab, and its signature is the issuer's, and this host never issued it" {
			t.Fatalf("%+v, %v", w, err)
		}
		time.Sleep(time.Minute)
		i, err := d.r.Incident(t.Context(), w.Incident)
		if err != nil || i.State != "draft" || !strings.Contains(string(i.Record), w.JTI) {
			t.Errorf("%+v, %v", i, err)
		}
		if mails := d.relay.taken(); len(mails) != 1 || !strings.Contains(mails[0], "To: <security@corp.example>") {
			t.Errorf("%d mails", len(mails))
		}
		again, err := d.judge(token, "")
		if err != nil || again.Incident != w.Incident || d.alarms()["draft"] != 1 {
			t.Errorf("%+v, %v, %v", again, err, d.alarms())
		}
		d.stop()
		d.store.SetFault(providers.Unavailable)
		d.start() // which knows that it has told
		_, err = d.judge(token, "")
		wantCode(t, err, client.NotFound, "was not yet: ask again")
		d.store.SetFault("")
		time.Sleep(5 * time.Minute)
		d.mustGet()
		again, err = d.judge(token, "")
		time.Sleep(time.Minute)
		if err != nil || again.Incident != w.Incident || d.alarms()["draft"] != 1 {
			t.Errorf("%+v, %v, %v", again, err, d.alarms())
		}
		for _, part := range strings.Split(token, ".") {
			if strings.Contains(strings.Join(d.relay.taken(), ""), part) {
				t.Error("a mail holds the token")
			}
		}
		d.nothingSecret(nil)
		if _, err := d.r.Close(t.Context(), d.caller, w.Incident, client.IncidentClose{OldStillValid: "It was a test of ours."}); err != nil {
			t.Fatal(err)
		}
		if again, err = d.judge(token, ""); err != nil || again.Incident != "" || !strings.Contains(again.Reason, "within the hour") {
			t.Errorf("%+v, %v", again, err)
		}
	})
}

// Whatever leaves a doubt makes no incident, and is said.
func TestNoForeignToken(t *testing.T) {
	for _, c := range []struct {
		name, words string
		token       func(d *desk) (token, name string)
	}{
		{"our own", "knows it", func(d *desk) (string, string) { return reveal(d.mustGet()), "" }},
		{"several hosts", "2 hosts use the client", func(d *desk) (string, string) {
			d.stop()
			d.hosts = 2
			d.start()
			d.mustGet()
			return d.elsewhere(), ""
		}},
		{"the daemon did not run", "did not run from", func(d *desk) (string, string) {
			d.log.Note(audit.Event{Type: audit.DaemonStop})
			time.Sleep(time.Hour)
			token := d.elsewhere()
			time.Sleep(time.Hour)
			d.log.Note(audit.Event{Type: audit.DaemonStart})
			return token, ""
		}},
		{"signature", "signature is not the issuer's", func(d *desk) (string, string) {
			token := d.elsewhere()
			n := strings.LastIndexByte(token, '.') + 5
			return token[:n] + map[bool]string{true: "B", false: "A"}[token[n] == 'A'] + token[n+1:], ""
		}},
		{"nobody's", "names no client of this host", func(*desk) (string, string) {
			return selfSigned("k", map[string]any{"alg": "HS256"}, map[string]any{"client_id": "somebody"}), ""
		}},
		{"the client's id and another key", "not signed with an allowed algorithm", func(d *desk) (string, string) {
			return selfSigned("k", map[string]any{"alg": "HS256"}, map[string]any{"client_id": theID, "iat": d.clock.Now().Wall.Unix()}), ""
		}},
		{"opaque", "no JWT", func(d *desk) (string, string) {
			d.issuer.Set(fake.Fault{Opaque: true})
			return d.elsewhere(), ""
		}},
		{"opaque, of nobody", "not active", func(*desk) (string, string) { return "something-else", "vdab" }},
		{"opaque, of a client that signs", "JWTs", func(*desk) (string, string) { return "something-else", "zgw" }},
		{"no such client", "no client is called", func(*desk) (string, string) { return "something-else", "nobody" }},
		{"signed, too new", "ask again at", func(d *desk) (string, string) { return d.signed(0), "" }},
		{"signed with another secret", "client_secret that serves now", func(d *desk) (string, string) {
			return selfSigned("another", map[string]any{"alg": "HS256"}, map[string]any{"client_id": "signer", "iat": d.clock.Now().Wall.Unix()}), ""
		}},
		{"signed, when this host signed too", "signed JWTs for single calls", func(d *desk) (string, string) {
			token := d.signed(0)
			d.mustSign()
			time.Sleep(time.Hour)
			return token, ""
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inDesk(t, func(d *desk) {
				d.mustGet()
				d.mustSign()
				time.Sleep(time.Hour)
				token, name := c.token(d)
				time.Sleep(time.Minute)
				w, err := d.judge(token, name)
				wantCode(d.t, err, client.NotFound, c.words)
				if list, _ := d.r.Incidents(d.t.Context()); len(list) != 0 || w.Foreign {
					d.t.Errorf("%+v, %+v", w, list)
				}
			})
		})
	}
}

// Before the daemon had the client, others had it; and a client that may not
// work is not tried at its issuer.
func TestForeignTokenOfBefore(t *testing.T) {
	inDesk(t, func(d *desk) {
		_, err := d.judge("something-else", "vdab")
		wantCode(t, err, client.NotFound, "not known now")
		if s := d.issuer.Stats(); s.Introspects != 0 {
			t.Errorf("%+v", s)
		}
		token := d.elsewhere()
		d.mustGet()
		_, err = d.judge(token, "")
		wantCode(t, err, client.NotFound, "knows vdab from")
	})
}

// An opaque token is judged by the issuer of the client that was named.
func TestForeignOpaqueToken(t *testing.T) {
	inDesk(t, func(d *desk) {
		d.mustGet()
		time.Sleep(time.Hour)
		d.issuer.Set(fake.Fault{Opaque: true})
		token := d.elsewhere()
		time.Sleep(time.Minute)
		w, err := d.judge(token, "vdab")
		if err != nil || !w.Foreign || w.Incident == "" || !strings.Contains(w.Reason, "its issuer says that it is active") {
			t.Fatalf("%+v, %v", w, err)
		}
	})
}

// Of a client that signs for itself, the secret is the proof.
func TestForeignSelfSigned(t *testing.T) {
	inDesk(t, func(d *desk) {
		d.mustSign()
		time.Sleep(time.Hour)
		token := d.signed(0)
		time.Sleep(time.Hour)
		d.config.Clients["zgw"] = Client{Issuer: d.config.Clients["vdab"].Issuer}
		if err := d.r.SetConfig(d.config); err != nil {
			t.Fatal(err)
		}
		w, err := d.judge(token, "")
		if err != nil || !w.Foreign || w.Client != "zgw" || w.Incident == "" {
			t.Fatalf("%+v, %v", w, err)
		}
	})
}

func (d *desk) signed(ago time.Duration) string {
	return selfSigned(theSigningSecret, map[string]any{"alg": "HS256", "typ": "JWT"}, map[string]any{"iss": "signer", "client_id": "signer", "iat": d.clock.Now().Wall.Add(-ago).Unix()})
}

func (d *desk) mustSign() {
	d.t.Helper()
	if _, err := d.b.JWT(d.t.Context(), d.caller, broker.UserRequest{Client: "zgw", User: oidc.User{ID: "u"}}); err != nil {
		d.t.Fatal(err)
	}
}

func reveal(g *broker.Grant) (text string) {
	_ = g.Token.Access.Use(func(b []byte) error { text = string(b); return nil })
	return text
}

// Times that leave a doubt.
func TestDoubt(t *testing.T) {
	inDesk(t, func(d *desk) {
		d.mustGet()
		time.Sleep(24 * time.Hour)
		now := d.clock.Now().Wall
		for _, c := range []struct {
			stray broker.Stray
			words string
		}{
			{broker.Stray{Statement: oidc.Statement{Issued: now.Add(-time.Hour), Expires: now}, Hosts: 1}, ""},
			{broker.Stray{Statement: oidc.Statement{Expires: now}, Hosts: 1}, "nothing says when"},
			{broker.Stray{Statement: oidc.Statement{Issued: now.Add(6 * time.Minute)}, Hosts: 1}, "future"},
			{broker.Stray{Statement: oidc.Statement{Issued: now.Add(-time.Hour), Expires: now.Add(-31 * 24 * time.Hour)}, Hosts: 1}, "30 days"},
			{broker.Stray{Statement: oidc.Statement{Issued: now.Add(-40 * 24 * time.Hour)}, Hosts: 1, Local: true}, "30 days"},
			{broker.Stray{Statement: oidc.Statement{Issued: now.Add(-25 * time.Hour)}, Hosts: 1}, "may be older"},
		} {
			c.stray.Client = "vdab"
			why, err := d.r.doubt(&c.stray, strings.Repeat("A", 43), now)
			if err != nil || (why == "") != (c.words == "") || !strings.Contains(why, c.words) {
				t.Errorf("%s: %q, %v", fmt.Sprint(c.stray.Statement), why, err)
			}
		}
	})
}

package fake

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Whatever is sent, no server lets in or breaks down.
func FuzzServers(f *testing.F) {
	f.Add("POST", "/op/v1/token", "application/x-www-form-urlencoded", "grant_type=client_credentials&client_assertion_type="+assertionType+"&client_assertion=e30.e30.", "Basic YTpi")
	f.Add("POST", "/as/revoke", "application/x-www-form-urlencoded", "token=x&client_id=a", "Bearer x")
	f.Add("POST", "/oauth/tokens", "application/json", `{"grant_type":"refresh_token","client_id":"a"}`, "")
	f.Add("GET", "/oauth/authorize?client_id=a&redirect_uri=http://127.0.0.1:1/x", "", "", "")
	f.Add("GET", "/zaken/api/v1/zaken", "", "", "Bearer eyJhbGciOiJIUzI1NiJ9.eyJjbGllbnRfaWQiOiJhIiwiaWF0IjowfQ.AA")
	a, g, m, z, o := &ACM{}, &Geosecure{}, &MijnKlantportaal{}, &ZGW{}, &OAuth2{}
	for _, s := range []interface{ Register(Client) error }{a, g, m, z, o} {
		register(f, s, Client{ID: "a", Secret: "a secret that nobody can guess, of 32 bytes", Subject: "CN=a", Keys: []string{ecJWK(f, ecKey(f), nil)}, RedirectURIs: []string{"http://127.0.0.1/callback"}})
	}
	f.Fuzz(func(t *testing.T, method, path, contentType, body, authorization string) {
		for _, h := range []http.Handler{a, g, m, z, o} {
			r, err := http.NewRequestWithContext(t.Context(), method, "https://x", strings.NewReader(body))
			if err != nil {
				return
			}
			r.URL.Path, r.URL.RawQuery, _ = strings.Cut(path, "?")
			r.Header.Set("Content-Type", contentType)
			r.Header.Set("Authorization", authorization)
			r.Header.Set("Authentication", authorization)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
		}
		for _, st := range []Stats{a.Stats(), g.Stats(), m.Stats(), z.Stats(), o.Stats()} {
			if st.Minted+st.APICalls+st.Revoked > 0 {
				t.Fatalf("%+v", st)
			}
		}
	})
}

package fake

import (
	"fmt"
	"net/http"
	"strings"
)

// Gateway is the API behind the issuer, as the gateway of the original guards
// it: below APIPath it wants a valid token of this process's issuers in
// Authorization and a registered key in X-IBM-Client-Id.
func (i *Issuer) Gateway() http.Handler { return http.HandlerFunc(i.api) }

func (i *Issuer) api(w http.ResponseWriter, r *http.Request) {
	setDate(w)
	w.Header().Set("X-Global-Transaction-ID", randomText(12))
	refused := func(status int, message, more string) {
		writeJSON(w, status, map[string]any{"httpCode": fmt.Sprint(status), "httpMessage": message, "moreInformation": more})
	}
	i.mu.Lock()
	f := i.fault
	known := false
	for _, c := range i.clients {
		known = known || c.APIKey != "" && c.APIKey == r.Header.Get("X-IBM-Client-Id")
	}
	if f.Kind.atGateway() && f.Times > 0 {
		if i.left == 0 {
			f = Fault{}
		} else {
			i.left--
		}
	}
	i.mu.Unlock()
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case !strings.HasPrefix(r.URL.Path, APIPath):
		refused(http.StatusNotFound, "Not Found", "No resources match requested URI")
	case f.Kind == GatewayThrottle:
		w.Header().Set("X-RateLimit-Limit", "name=default,100;")
		w.Header().Set("X-RateLimit-Remaining", "name=default,0;")
		refused(http.StatusTooManyRequests, "Too Many Requests", "Rate Limit exceeded")
	case !known || f.Kind == GatewayKey:
		refused(http.StatusUnauthorized, "Unauthorized", "Invalid client id or secret.")
	case !bearer || f.Kind == GatewayToken || check(token) != nil:
		refused(http.StatusUnauthorized, "Unauthorized",
			"Cannot pass the security checks that are required by the target API or operation, Enable debug headers for more details.")
	default:
		w.Header().Set("X-RateLimit-Limit", "name=default,100;")
		w.Header().Set("X-RateLimit-Remaining", "name=default,92;")
		writeJSON(w, http.StatusOK, map[string]any{"resultaten": []map[string]string{{"titel": "Software engineer", "plaats": "Leuven"}}, "totaal": 1})
	}
}

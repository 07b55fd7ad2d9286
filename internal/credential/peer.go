package credential

import (
	"fmt"
	"strings"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
)

// A peer is what the name of systemd's own end of a connection says:
// @RANDOM/unit/UNIT/CREDENTIAL (systemd.exec(5), LoadCredential=).
type peer struct {
	Name string // of the credential, CLIENT.WHAT
	broker.UnitCredential
}

func (p peer) key() string { return p.Unit + " " + p.Name }

// parsePeer reads the name of an abstract socket, which begins with @ as Go
// shows it.
func parsePeer(address string) (peer, error) {
	parts := strings.Split(address, "/")
	if len(parts) != 4 || !strings.HasPrefix(parts[0], "@") || parts[1] != "unit" || parts[2] == "" {
		return peer{}, malformed("the connection is not one that systemd makes for LoadCredential=")
	}
	p := peer{Name: parts[3]}
	p.Unit = parts[2]
	name, what, _ := strings.Cut(p.Name, ".")
	switch what := access.Surface(what); what { //nolint:exhaustive // these are the values that stand in a file
	case access.Token, access.Headers, access.APIKey:
		p.Client, p.What = name, what
		return p, nil
	}
	return p, malformed(fmt.Sprintf("the credential is called %.60q: call it CLIENT.token, CLIENT.headers or CLIENT.api-key, as in LoadCredential=vdab.headers:/run/credential-broker/credential.sock", p.Name))
}

func malformed(detail string) error {
	return &broker.Error{Code: client.InvalidRequest, Detail: detail}
}

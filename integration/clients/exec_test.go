//go:build real

package clients

import (
	"path/filepath"
	"strings"
	"testing"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
)

// PHP below broker exec, in the ways that docs/applications.md names.
func TestExecPHP(t *testing.T) {
	real.Row(t, "clients", "PHP, curl (Debian)", "broker exec: the files by curl and by cat")
	w := newWorld(t, "vdab")
	want, err := w.ask.Token(t.Context(), "vdab", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, read := range []string{
		`shell_exec('cat "$CREDENTIAL_BROKER_TOKEN_FILE"')`,
		`(function () { $c = curl_init('file://' . getenv('CREDENTIAL_BROKER_TOKEN_FILE')); curl_setopt($c, CURLOPT_RETURNTRANSFER, true); return curl_exec($c); })()`,
	} {
		s := run(t, w.path("broker.sock"), []string{filepath.Join(real.Root(), "dist", "broker"), "exec", "vdab", "--", "php", "-r", "echo json_encode(['token' => " + read + "]);"})
		if s.Token != want.AccessToken {
			t.Errorf("%s: %+v", read, s)
		}
	}
}

// The socket may be all that is said.
func TestNodeSocket(t *testing.T) {
	s := run(t, "/of/the/environment", []string{"node", "--input-type=module", "-e", "import { Broker } from '" + source("clients", "credential-broker.mjs") + "';\n" +
		"console.log(JSON.stringify({ detail: (await new Broker('/told').token('vdab').catch((e) => e)).detail }));"})
	if !strings.Contains(s.Detail, "on /told:") {
		t.Errorf("%+v", s)
	}
}

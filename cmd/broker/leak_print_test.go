package main

import (
	"strings"
	"testing"

	"credentialbroker/api/client"
)

// The preview says of each recipient how the mail leaves, and an incident how
// it has left.
func TestSealingIsShown(t *testing.T) {
	mails := []client.Mail{{To: "a@issuer.example", Subject: "s", Text: "t", Signed: true, EncryptedTo: "OpenPGP key AB12 CD34"}, {To: "b@issuer.example", Subject: "s", Text: "t", Signed: true},
		{To: "c@corp.example", Subject: "s", Text: "t", State: "sent", Remarks: []string{"it left without a signature"}}}
	var b strings.Builder
	printMails(&b, mails)
	if want := "To:      a@issuer.example (signed, encrypted to OpenPGP key AB12 CD34), b@issuer.example (signed), c@corp.example\n"; !strings.HasPrefix(b.String(), want) {
		t.Errorf("%s", b.String())
	}
	b.Reset()
	printReport(&b, &client.Incident{Mails: mails})
	for _, want := range []string{"(signed, encrypted to OpenPGP key AB12 CD34)\n", "The mail to c@corp.example, revision 0: it left without a signature.\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
}

package intake

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"unicode/utf16"
)

// golden are texts as issuers and people write them. {s} is a secret that
// ends in a dot.
var golden = []struct{ name, text, want string }{
	// Labels and separators.
	{"colon", "Client ID: abc12345\nClient Secret: def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"equals", "CLIENT_ID=abc12345\nexport CLIENT_SECRET=\"myapp\"", "client_id=abc12345\nclient_secret=myapp"},
	{"arrow", "client_id => abc12345\nclient_secret := def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"dash", "Client ID - abc12345\nClient secret – def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"spaces", "Client ID      abc12345\nClient secret  def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"Dutch", "Cliënt-ID: abc12345\nClientgeheim: def12345\nApi-sleutel: key12345", "client_id=abc12345\nclient_secret=def12345\napi_key=key12345"},
	{"Dutch, other words", "Klant-id: abc12345\nGeheime sleutel: def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"Dutch sentence", "Uw client-id is abc12345\nHet client secret is: def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"accent apart", "Clie\u0308nt-ID: abc12345\nSecret: def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"app", "App ID: abc12345\nApp Secret: def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"consumer", "Consumer key: abc12345\nConsumer secret: def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"camel case", "clientId: abc12345\nvdabClientSecret: def12345\napiKey: key12345", "client_id=abc12345\nclient_secret=def12345\napi_key=key12345"},
	{"header of the gateway", "API key (X-IBM-Client-Id): key12345\nX-IBM-Client-Id: key12345", "api_key=key12345"},
	{"gateway's client id", "Client ID (X-IBM-Client-Id): key12345", "api_key=key12345"},
	{"subscription key", "Ocp-Apim-Subscription-Key: key12345", "api_key=key12345"},
	{"Azure", "Application (client) ID: 3f2504e0-4f89-11d3-9a0c-0305e82c3301\nSecret ID: 11111111-4f89-11d3-9a0c-0305e82c3301\nClient secret value: def12345",
		"client_id=3f2504e0-4f89-11d3-9a0c-0305e82c3301\nclient_secret=def12345"},
	{"number as an id", "Client id: 6594\nClient secret: def12345", "client_id=6594\nclient_secret=def12345"},
	{"name is no id", "Clientnaam: abc12345", "not_understood"},
	{"on one line", "Client ID: abc12345, Client Secret: def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"on one line, and", "client id: abc12345 en client secret: def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"behind words", "Je kan aanmelden met client id: abc12345", "client_id=abc12345"},
	{"list", "- Client ID: abc12345\n2. Client secret: def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"a line in bold type", "**Client ID: abc12345**", "?client_id: it is not clear whether the quotes or brackets belong to it [abc12345|Client ID|line 1] [abc12345**|Client ID|line 1]"},
	{"quoted mail", "> > Client ID: abc12345\n>> Client secret: def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"bold type", "**Client ID:** `abc12345`\n**Client secret**: **def12345**", "client_id=abc12345\nclient_secret=def12345"},

	// Where the value stands.
	{"next line", "Client ID:\nabc12345\n\nClient Secret\n-------------\n\ndef12345", "client_id=abc12345\nclient_secret=def12345"},
	{"labels, then values", "Client ID\nClient secret\nabc12345abc1\ndef12345def1",
		"?client_id: the label “Client ID” stands without a value (line 1) [abc12345abc1||line 3] [def12345def1||line 4]\n" +
			"?client_secret: the label “Client secret” stands without a value (line 2) [abc12345abc1||line 3] [def12345def1||line 4]"},
	{"a label without value", "Client ID: abc12345\nClient secret: volgt per SMS", "client_id=abc12345\n?client_secret: the label “Client secret” stands without a value (line 2)"},
	{"placeholders", "client_id: ${clientId}\nclient_secret: <client secret>\napi key: ********\nclientId: xxxxxxxxxxxx", "not_understood"},
	{"values alone", "abc12345abc1\ndef12345def1\n", "?: no label says what this is [abc12345abc1||line 1] [def12345def1||line 2]"},
	{"prose", "De Client ID en Client Secret worden in een geëncrypteerd zip-bestand verzonden.\nHet wachtwoord van het bestand: per SMS", "not_understood"},

	// Tables.
	{"columns, semicolon", "client_id;client_secret\nabc12345;def;12345\n", "not_understood"},
	{"columns", "client_id;client_secret\nabc12345;S3cr3t.\n", "client_id=abc12345\nclient_secret=S3cr3t."},
	{"columns, quotes", "\"Client ID\",\"Client secret\"\r\n\"abc12345\",\"d\"\"e,f;12\"\r\n", "client_id=abc12345\nclient_secret=d\"e,f;12"},
	{"columns, tab", "Omgeving\tApi-sleutel\nTest\tkey12345\n", "api_key=key12345"},
	{"columns, Markdown", "| Client ID | Client secret |\n|:---|:---|\n| abc12345 | def12345 |", "client_id=abc12345\nclient_secret=def12345"},
	{"columns, spaces", "Client ID     Client secret\n---------     -------------\nabc12345      def12345", "client_id=abc12345\nclient_secret=def12345"},
	{"rows", "Veld;Waarde\nClient ID;abc12345\nClient secret;def=12:345\n", "client_id=abc12345\nclient_secret=def=12:345"},
	{"rows, comma", "client_id,abc12345\nclient_secret,\"def,12345\"", "client_id=abc12345\nclient_secret=def,12345"},
	{"two clients", "Omgeving;Client ID;Client secret\nTest;abc12345;def12345\nAcceptatie;ghi12345;jkl12345",
		"?client_id: several different values have such a label [abc12345|Client ID|line 2] [ghi12345|Client ID|line 3]\n" +
			"?client_secret: several different values have such a label [def12345|Client secret|line 2] [jkl12345|Client secret|line 3]"},
	{"a word is no value", "api key,naam\n", "?api_key: it does not look like a credential [naam|api key|line 1]"},

	// JSON.
	{"JSON", `{"client_id":"abc","clientSecret":"d\u0065f\/\"1","api-key":12345}`, "client_id=abc\nclient_secret=def/\"1\napi_key=12345"},
	{"JSON, nested", `{"vdab":{"client":{"id":"abc","secret":"def."}},"api":{"key":"k","secret":"no"}}`,
		"client_id=abc\nclient_secret=def.\napi_key=k\n! An API secret stands in line 1. It is not taken: no document says to send it."},
	{"JSON, list of names", `[{"key":"client_id","value":"abc"},{"value":"def","name":"Client secret"},{"name":"other","value":"x"}]`, "client_id=abc\nclient_secret=def"},
	{"JSON, null", `{"client_id":"abc","client_secret":null}`, "client_id=abc\n?client_secret: the label “client_secret” stands without a value (line 1)"},
	{"JSON, a sentence", `{"client_id":"abc","client_secret":"see the SMS"}`, "client_id=abc\n?client_secret: it holds a space [see the SMS|client_secret|line 1]"},
	{"JSON, two", `[{"client_id":"abc"},{"client_id":"def"}]`, "?client_id: several different values have such a label [abc|client_id|line 1] [def|client_id|line 1]"},
	{"JSON, broken", "{\n \"client_id\": \"abc\",\n \"client_secret\": \"de\\/f\",\n}",
		"client_id=abc\n?client_secret: it holds a backslash, which may stand for something else [de\\/f|client_secret|line 3]"},
	{"JSON, several documents", "{\"client_id\":\"abc\",\"client_secret\":\"def\"}\n{}", "client_id=abc\n?client_secret: several values stand together without a space, and may be encoded [def\"}|client_secret|line 1]"},

	// HTML.
	{"HTML", "<html><head><title>Client ID: no1234</title><style>p{}</style></head><body><p>Cli&euml;nt&nbsp;ID: <b>abc&amp;12345</b><br>Client secret:<br/>def&#49;2345</p><!-- api key: no12345 -->",
		"client_id=abc&12345\nclient_secret=def12345"},
	{"HTML, table", "<table>\n<tr><th>Client ID</th><td>abc12345</td></tr>\n<tr><th>Client\nsecret</th><td>def12345</td></tr></table>", "client_id=abc12345\nclient_secret=def12345"},

	// What a person has to decide.
	{"full stop", "Client ID: abc12345.\nClient secret: def12345", "client_secret=def12345\n?client_id: it is not clear whether the punctuation at its end belongs to it [abc12345|Client ID|line 1] [abc12345.|Client ID|line 1]"},
	{"full stop, settled below", "Client ID: abc12345.\nCLIENT_ID=abc12345", "client_id=abc12345"},
	{"full stop behind a UUID", "Client ID: 3f2504e0-4f89-11d3-9a0c-0305e82c3301.", "client_id=3f2504e0-4f89-11d3-9a0c-0305e82c3301"},
	{"one quote", "Client ID: \"abc12345", "?client_id: it is not clear whether the quotes or brackets belong to it [abc12345|Client ID|line 1] [\"abc12345|Client ID|line 1]"},
	{"text behind", "Client ID: abc12345 (test)", "?client_id: other text follows it [abc12345|Client ID|line 1] [abc12345 (test)|Client ID|line 1]"},
	{"two ids", "Client ID test: abc12345\nClient ID acceptatie: def12345",
		"?client_id: several different values have such a label [abc12345|Client ID test|line 1] [def12345|Client ID acceptatie|line 2]"},
	{"the same twice", "Client ID: abc12345\nclient_id: abc12345", "client_id=abc12345"},
	{"one sure, one not", "Client ID: abc12345\nClient ID: other", "?client_id: several different values have such a label [abc12345|Client ID|line 1] [other|Client ID|line 2]"},
	{"old and new", "Oude client secret: abc12345\nNieuwe client secret: def12345",
		"client_secret=def12345\n! The value after “Oude client secret” (line 1) was left out: others have a clearer label."},
	{"only an old one", "Previous client secret: abc12345", "?client_secret: its label says that it is an old one [abc12345|Previous client secret|line 1]"},
	{"user name", "Gebruikersnaam: abc12345\nWachtwoord: def12345",
		"?client_id: its label “Gebruikersnaam” may mean something else [abc12345|Gebruikersnaam|line 1]\n?client_secret: its label “Wachtwoord” may mean something else [def12345|Wachtwoord|line 2]"},
	{"user name beside", "Client ID: abc12345\nClient secret: def12345\nWachtwoord: ghi12345",
		"client_id=abc12345\nclient_secret=def12345\n! The value after “Wachtwoord” (line 3) was left out: others have a clearer label."},
	{"whose secret", "Api-sleutel: key12345\nGeheim: def12345", "api_key=key12345\n?client_secret: its label “Geheim” may be that of an API key's secret [def12345|Geheim|line 2]"},
	{"a word", "Client ID: applicatie", "?client_id: it does not look like a credential [applicatie|Client ID|line 1]"},
	{"query", "https://x.example/?client_id=abc&client_secret=d%2Fe",
		"?client_id: several values stand together without a space, and may be encoded [abc|client_id|line 1]\n?client_secret: several values stand together without a space, and may be encoded [d%2Fe|client_secret|line 1]"},
	{"address", "Client ID: https://app.example/1", "?client_id: it looks like an address [https://app.example/1|Client ID|line 1]"},
	{"corrected by a word processor", "Client secret: abc–12345", "?client_secret: it holds a character that no id or secret can hold: a mail program may have changed it [abc–12345|Client secret|line 1]"},
	{"invisible characters", "Client\u00a0ID:\u00a0abc\u200b12345\u00ad", "client_id=abc12345"},
	{"smart quotes", "Client ID: “abc12345”", "client_id=abc12345"},
	{"word in a sentence", "client_id abc12345", "?client_id: it may be part of a sentence [abc12345|client_id|line 1]"},
	{"API secret", "Api-sleutel: key12345\nApi-geheim: def12345", "api_key=key12345\n! An API secret stands in line 2. It is not taken: no document says to send it."},
	{"value in the label", "Client secret (S3cr3tS3cr3t): other", "?client_secret: it does not look like a credential [other|Client secret|line 1]"},
	{"query alone", "client_id=abc12345&client_secret=def12345",
		"?client_id: several values stand together without a space, and may be encoded [abc12345|client_id|line 1]\n?client_secret: several values stand together without a space, and may be encoded [def12345|client_secret|line 1]"},
	{"sentence below a label", "Client ID\nDit is uw sleutel, bewaar hem goed\nabc12345abc1", "?client_id: the label “Client ID” stands without a value (line 1) [abc12345abc1||line 3]"},
	{"one repeated, one alone", "Client ID: abc12345abc1\n\nabc12345abc1\ndef12345def1", "client_id=abc12345abc1\n?: no label says what this is [def12345def1||line 4]"},
	{"value in a label", "Client secret (S3cr3tS3cr3t): see above", "not_understood"},

	// What is not read.
	{"PDF", "%PDF-1.7\nClient ID: abc12345", "unsupported"},
	{"old office document", "\xd0\xcf\x11\xe0Client ID: abc12345", "unsupported"},
	{"7z", "7z\xbc\xaf\x27\x1cClient ID: abc12345", "unsupported"},
	{"mail", "From: x@issuer.example\nContent-Type: multipart/mixed; boundary=x\n\nClient ID: abc12345", "unsupported"},
	{"mail, encoded", "From: x@issuer.example\nContent-Transfer-Encoding: quoted-printable\n\nClient ID: abc12345", "unsupported"},
	{"mail, plain", "From: x@issuer.example\nSubject: toegang\n\nClient ID: abc12345", "client_id=abc12345"},
	{"binary", "Client ID: abc12345\x00", "unsupported"},
	{"program", "MZClient ID: abc12345", "suspicious"},
	{"blank", " \n\t\n", "not_understood"},
}

func TestGolden(t *testing.T) {
	for _, c := range golden {
		t.Run(c.name, func(t *testing.T) {
			f, err := readBytes([]byte(c.text))
			if got := show(f, err); got != c.want {
				t.Errorf("%q\ngot  %s\nwant %s", c.text, got, c.want)
			}
			for _, n := range f.Notes {
				if strings.Contains(n, "12345") {
					t.Errorf("the note %q shows a value", n)
				}
			}
			if err != nil && (strings.Contains(err.Error(), "12345") || strings.Contains(err.Error(), "S3cr3t")) {
				t.Errorf("the error %q shows a value", err)
			}
		})
	}
}

// TestCharsets reads each golden text that can be written so in other
// encodings, with the same result.
func TestCharsets(t *testing.T) {
	for _, c := range golden {
		if strings.HasPrefix(c.want, "unsupported") || strings.HasPrefix(c.want, "suspicious") {
			continue
		}
		little, big := []byte{0xff, 0xfe}, []byte{0xfe, 0xff}
		for _, u := range utf16.Encode([]rune(c.text)) {
			little = append(little, byte(u), byte(u>>8))
			big = append(big, byte(u>>8), byte(u))
		}
		dos := []byte(strings.ReplaceAll(strings.ReplaceAll(c.text, "\r\n", "\n"), "\n", "\r\n"))
		for what, b := range map[string][]byte{"UTF-16LE": little, "UTF-16BE": big, "UTF-8 with a mark": []byte("\xef\xbb\xbf" + c.text), "DOS lines": dos} {
			f, err := readBytes(b)
			if got := show(f, err); got != c.want {
				t.Errorf("%s in %s\ngot  %s\nwant %s", c.name, what, got, c.want)
			}
		}
	}
	f, err := readBytes([]byte("Cli\xebnt-ID: abc12345\nGeheim: \x93def12345\x94"))
	if got := show(f, err); got != "client_id=abc12345\nclient_secret=def12345" {
		t.Errorf("Windows-1252: %s (%v)", got, err)
	}
}

func TestLooseValuesAreFew(t *testing.T) {
	var b strings.Builder
	for range 100 {
		b.WriteString("abcdefgh1234567" + string(rune('a'+b.Len()/16%26)) + "\n")
	}
	f, err := readBytes([]byte(b.String()))
	if err != nil || len(f.Doubts) != 1 || len(f.Doubts[0].Candidates) != maxLoose {
		t.Errorf("%v, %v", f.Doubts, err)
	}
}

// TestLeft: what is in a file and not taken is told apart from other notes.
func TestLeft(t *testing.T) {
	const pair = "client id: kMadeUpByATest0000001\nclient secret: sMadeUpByATest0000000000\n"
	for text, want := range map[string]string{
		pair: "",
		pair + "api secret: an-api-secret-0000000":          "An API secret stands in",
		pair + "old client secret: sOldByATest000000000000": "was left out",
	} {
		f, err := Read(strings.NewReader(text), int64(len(text)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if left := strings.Join(f.Left, "\n"); (left == "") != (want == "") || !strings.Contains(left, want) || !strings.Contains(strings.Join(f.Notes, "\n"), left) {
			t.Errorf("%q leaves %q, and has the notes %q", text, left, f.Notes)
		}
		f.Wipe()
	}
	archive, err := os.ReadFile("testdata/picture-and-text.zip")
	if err != nil {
		t.Fatal(err)
	}
	f, err := Read(bytes.NewReader(archive), int64(len(archive)), nil)
	if err != nil || len(f.Left) != 2 {
		t.Errorf("%q, %v: the picture and the PDF are not read", f.Left, err)
	}
	f.Wipe()
}

func TestNotesAreFew(t *testing.T) {
	f, err := readBytes([]byte("api key: abc12345\n" + strings.Repeat("api secret: def12345\n", 100)))
	if err != nil || len(f.Notes) != maxNotes {
		t.Errorf("%d notes, %v", len(f.Notes), err)
	}
}

func TestDeepJSON(t *testing.T) {
	deep := strings.Repeat(`{"a":[`, 4000) + `{"client_id":"abc"}` + strings.Repeat(`]}`, 4000)
	if f, err := readBytes([]byte(deep)); show(f, err) != string(NotUnderstood) {
		t.Errorf("got %s", show(f, err))
	}
}

// TestWipe: a copy of a candidate that stands in two doubts is wiped too.
func TestWipe(t *testing.T) {
	f, err := readBytes([]byte("Api key: key12345\nClient ID\nClient secret\nabc12345abc1\ndef12345def1"))
	if err != nil || len(f.Doubts) != 2 {
		t.Fatal(show(f, err))
	}
	f.Wipe()
	if got := reveal(f.Fields[APIKey]) + reveal(f.Doubts[0].Candidates[0].Value) + reveal(f.Doubts[1].Candidates[1].Value); got != "" {
		t.Errorf("still there: %q", got)
	}
}

package intake

import (
	"bytes"
	"unicode"
	"unicode/utf8"
)

// Rules of this file:
//   - a label is compared by its words, whatever their case, accents and
//     separators: clientId, CLIENT_ID, "Uw cliënt-ID (test)" are one;
//   - nothing here makes a string of what is no label: it may be a secret.

// An extra kind of value, which is noticed and not taken.
const apiSecret = "api_secret"

// strength says how far a label may be trusted.
type strength int

const (
	weak   strength = iota // may mean something else: "wachtwoord"
	bare                   // means what the labels around it say: "geheim"
	strong                 // "client secret"
)

// A label is a recognised one.
type label struct {
	field    string
	strength strength
	old      bool   // "oude", "previous"
	text     string // as written, cleaned
	place    string
}

const maxLabel = 80 // bytes

// labelOf recognises text as a label, as a whole.
func labelOf(text []byte) (label, bool) {
	text = bytes.TrimSpace(text)
	if len(text) == 0 || len(text) > maxLabel {
		return label{}, false
	}
	field, s, old := classify(text)
	if before, within, ok := bytes.Cut(text, []byte("(")); field == "" && ok && bytes.HasSuffix(text, []byte(")")) {
		field, s, old = classify(before)
		if plausible(bytes.TrimSuffix(within, []byte(")"))) { // not to be shown: it may be a value
			text = before
		}
	}
	if field == "" {
		return label{}, false
	}
	return label{field: field, strength: s, old: old, text: cleaned(string(bytes.Trim(text, "\"'`*_-<>{}[],;&| ")))}, true
}

// classify gives the field that text names, "" for none.
func classify(text []byte) (field string, s strength, old bool) {
	var buf [2 * maxLabel]byte
	defer clear(buf[:])
	words := normal(buf[:0], text)
	// Words around a label that change nothing, or only its age.
	for {
		first, rest, more := bytes.Cut(words, []byte(" "))
		if !more || !isFiller(first) && !isOld(first) {
			break
		}
		old = old || isOld(first)
		words = rest
	}
	for {
		n := bytes.LastIndexByte(words, ' ')
		if n < 0 || !isFiller(words[n+1:]) && !isOld(words[n+1:]) {
			break
		}
		old = old || isOld(words[n+1:])
		words = words[:n]
	}
	n := 0
	for _, c := range words {
		if c != ' ' {
			words[n] = c
			n++
		}
	}
	field, s = lookup(words[:n])
	return field, s, old
}

// lookup knows the labels, in lower case and without spaces.
func lookup(word []byte) (string, strength) {
	switch string(word) { // does not allocate
	case "clientid", "clientids", "clientidentifier", "clientidentificatie", "klantid", "klantidentificatie", "applicatieid", "applicationid",
		"applicationclientid", "clientapplicationid", "appid", "consumerkey", "consumerid":
		return ClientID, strong
	case "gebruikersnaam", "gebruiker", "username", "userid", "login", "loginnaam", "id", "identifier":
		return ClientID, weak
	case "clientsecret", "clientsecrets", "clientsecretvalue", "clientgeheim", "klantgeheim", "applicatiegeheim", "appsecret", "applicationsecret",
		"consumersecret", "clientsecretkey", "geheimclient", "clientgeheimesleutel":
		return ClientSecret, strong
	case "secret", "secretkey", "geheim", "geheimesleutel", "secretvalue":
		return ClientSecret, bare
	case "wachtwoord", "paswoord", "password", "passwd", "clientpassword", "clientwachtwoord":
		return ClientSecret, weak
	case "apikey", "apisleutel", "xapikey", "subscriptionkey", "abonnementsleutel", "abonnementssleutel", "ocpapimsubscriptionkey", "apikeys", "sleutelapi",
		// The header of API Connect, which once called its key a client id.
		"xibmclientid", "apikeyxibmclientid", "apisleutelxibmclientid", "clientidxibmclientid", "xibmclientidapikey", "xibmclientidapisleutel":
		return APIKey, strong
	case "sleutel", "key":
		return APIKey, weak
	case "apisecret", "apigeheim", "apikeysecret", "apisecretkey", "apisecrets", "xibmclientsecret", "apisecretxibmclientsecret", "apigeheimxibmclientsecret", "clientsecretxibmclientsecret":
		return apiSecret, strong
	}
	return "", weak
}

func isFiller(word []byte) bool {
	switch string(word) {
	case "uw", "je", "jouw", "de", "het", "een", "this", "the", "your", "our", "ons", "onze", "my", "mijn", "van", "voor", "for", "export", "set", "const", "nieuwe", "nieuw", "new",
		"huidige", "current", "oauth", "oauth2", "oidc", "vdab", "isam", "acm", "openid", "waarde", "value", "is",
		"test", "tst", "tni", "acc", "acceptatie", "acceptance", "uat", "dev", "prod", "prd", "productie", "production", "omgeving", "environment": //nolint:misspell // Dutch
		return true
	}
	return false
}

func isOld(word []byte) bool {
	switch string(word) {
	case "oude", "oud", "vorige", "vervallen", "old", "previous", "former", "expired", "revoked", "ingetrokken":
		return true
	}
	return false
}

// normal appends text to dst in lower-case ASCII words with one space between:
// letters without their accents, words split where lower meets upper case.
func normal(dst, text []byte) []byte {
	var last rune
	for len(text) > 0 && len(dst) < cap(dst)-2 {
		r, n := utf8.DecodeRune(text)
		text = text[n:]
		r = plain(r)
		word := r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r))
		camel := unicode.IsUpper(r) && unicode.IsLower(last)
		if (!word || camel) && len(dst) > 0 && dst[len(dst)-1] != ' ' {
			dst = append(dst, ' ')
		}
		if word {
			dst = append(dst, byte(unicode.ToLower(r)))
		} else if r >= utf8.RuneSelf && unicode.IsLetter(r) {
			dst = append(dst, '?') // a letter that no label has
		}
		last = r
	}
	return bytes.TrimSpace(dst)
}

// plain takes the accent off the letters that Dutch labels have.
func plain(r rune) rune {
	switch r {
	case 'ë', 'é', 'è', 'ê':
		return 'e'
	case 'Ë', 'É', 'È', 'Ê':
		return 'E'
	case 'ï', 'í':
		return 'i'
	case 'Ï', 'Í':
		return 'I'
	}
	return r
}

package leak

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Language is one that reports are written in.
type Language string

// The languages.
const (
	Dutch   Language = "nl"
	English Language = "en"
)

// when writes a moment in Belgian time and in UTC.
func (l Language) when(t time.Time) string {
	if t.IsZero() {
		return l.word("not_known")
	}
	t = t.UTC()
	local := t
	if zone, err := time.LoadLocation("Europe/Brussels"); err == nil { // it is linked in
		local = t.In(zone)
	}
	utc := t.Format("15:04")
	if t.Day() != local.Day() {
		utc = l.day(t) + ", " + utc
	}
	return fmt.Sprintf("%s, %s %s (%s UTC)", l.day(local), local.Format("15:04"), l.word("in_brussels"), utc)
}

func (l Language) day(t time.Time) string {
	if l == Dutch {
		months := []string{"januari", "februari", "maart", "april", "mei", "juni", "juli", "augustus", "september", "oktober", "november", "december"}
		return fmt.Sprintf("%d%s%s%s%d", t.Day(), unbroken, months[t.Month()-1], unbroken, t.Year())
	}
	return strings.ReplaceAll(t.Format("2 January 2006"), " ", unbroken)
}

func (l Language) orWord(t time.Time, word string) string {
	if t.IsZero() {
		return l.word(word)
	}
	return l.when(t)
}

// When writes a moment in Belgian time and in UTC, on one line.
func (l Language) When(t time.Time) string {
	return strings.ReplaceAll(l.when(t), unbroken, " ")
}

// Word translates a code of an incident: a step, an outcome, a credential.
// What it does not know stays as it is.
func (l Language) Word(code string) string { return l.word(code) }

// Detail is the detail of an action; most of them need no translation.
func (l Language) Detail(text string) string {
	if text == NoRevocation || text == ValuesGone {
		return l.word(text)
	}
	return text
}

// word translates a code; what it does not know stays as it is.
func (l Language) word(code string) string {
	words, ok := map[string][2]string{
		"in_brussels":                   {"in Brussel", "in Brussels"},
		"not_known":                     {"niet bekend", "not known"},
		"goes_on":                       {"nog aan de gang, of niet bekend", "it goes on, or is not known"},
		"unnumbered":                    {"(nog zonder nummer)", "(not numbered yet)"},
		"fill_in":                       {"IN TE VULLEN", "FILL IN"},
		"nobody":                        {"niemand", "nobody"},
		"and_more":                      {"en nog", "and others:"},
		"or":                            {"of", "or"},
		"claims":                        {"zegt te zijn:", "claims to be:"},
		"kbo":                           {"KBO-nummer", "enterprise number (KBO)"},
		"production":                    {"productie", "production"}, //nolint:misspell // Dutch
		string(Suspected):               {"vermoeden", "suspected"},
		string(Confirmed):               {"bevestigd", "confirmed"},
		"personal_yes":                  {"bereikbaar", "could be reached"},
		"personal_no":                   {"niet bereikbaar", "could not be reached"},
		"personal_unknown":              {"nog niet bekend of ze bereikbaar waren", "not known yet whether it could be reached"},
		"policy_" + string(KeepServing): {"in gebruik laten", "keep serving"},
		"policy_" + string(Quarantine):  {"stilleggen (quarantaine)", "stop (quarantine)"}, //nolint:misspell // Dutch
		"policy_" + string(Rotate):      {"vervangen", "rotate"},
		string(Token):                   {"access token", "access token"},
		string(ClientSecret):            {"client secret", "client secret"},
		string(APIKey):                  {"API-sleutel", "API key"},
		string(PrivateKey):              {"private sleutel van de client", "the client's private key"},
		string(ManagerLogin):            {"login van onze secrets manager, en daarmee alle gegevens van de client", "the login of our secrets manager, and so all of the client's credentials"},
		string(Host):                    {"een server waarop de gegevens in gebruik zijn", "a host on which the credentials are in use"},
		string(Unknown):                 {"nog niet bekend welke gegevens", "not known yet which of them"},
		"quarantine":                    {"stilleggen van de client", "stop the client"},
		"end_streams":                   {"afsluiten van open verbindingen", "end open streams"},
		"remove_files":                  {"verwijderen van bestanden met tokens", "remove files with tokens"},
		"stop_children":                 {"stoppen van processen met tokens", "stop processes with tokens"},
		"revoke_tokens":                 {"intrekken van tokens bij de uitgever", "revoke tokens at the issuer"},
		NoRevocation:                    {"de uitgever biedt dat deze client niet", "the issuer does not offer it to this client"},
		ValuesGone:                      {"de broker is herstart en heeft deze tokens zelf niet meer", "the broker was restarted and no longer has these tokens"},
		"rotate":                        {"vervangen van de gegevens", "replace the credentials"},
		"install_version":               {"in gebruik nemen van een nieuwe versie", "take a new version into use"},
		"confirm_new":                   {"bevestiging door een persoon dat de gegevens vervangen zijn", "a person confirms that the credentials were replaced"},
		"release":                       {"vrijgeven van de client", "release the client"},
		"trace_tokens":                  {"nagaan welke tokens er waren", "find out which tokens there were"},
		"record":                        {"vastleggen", "record"},
		"deliver":                       {"afleveren bij de mailserver", "deliver to the mail relay"},
		"remind":                        {"herinnering: de oude gegevens werken nog", "reminder: the old credentials still work"},
		"merge_evidence":                {"toevoegen van gegevens van een andere server", "add evidence of another host"},
		string(Done):                    {"gelukt", "done"},
		string(Failed):                  {"mislukt", "failed"},
		string(Pending):                 {"bezig", "in progress"},
		string(NotPossible):             {"niet mogelijk", "not possible"},
	}[code]
	switch {
	case !ok:
		return code
	case l == Dutch:
		return words[0]
	}
	return words[1]
}

// revoke says what the issuer is asked to revoke, but for the tokens that were
// issued with it.
func (l Language) revoke(i *Incident, replaced bool) string {
	var dutch, english []string
	add := func(nl, en string, of ...Credential) {
		if slices.ContainsFunc(i.What, func(w Credential) bool { return slices.Contains(of, w) }) {
			dutch, english = append(dutch, nl), append(english, en)
		}
	}
	if replaced {
		add("de oude gegevens", "the old credentials", ClientSecret, APIKey, PrivateKey, Unknown, Host, ManagerLogin)
	} else {
		add("het client secret", "the client secret", ClientSecret, Unknown, Host, ManagerLogin)
		add("de API-sleutel", "the API key", APIKey, Unknown, Host, ManagerLogin)
		add("de geregistreerde publieke sleutel", "the registered public key", PrivateKey)
	}
	if len(dutch) == 0 {
		dutch, english = []string{"alle tokens"}, []string{"all tokens"}
	}
	words, and, of := english, " and ", " of the client "
	if l == Dutch {
		words, and, of = dutch, " en ", " van de client "
	}
	last := len(words) - 1
	text := words[last]
	if last > 0 {
		text = strings.Join(words[:last], ", ") + and + text
	}
	if i.ClientID != "" {
		text += of + i.ClientID
	}
	return text
}

// Clocks writes the deadlines of GDPR art. 33 and NIS2 art. 23(4) that may run
// from the moment of knowledge, for the declaring person and the organisation.
// It decides nothing. No issuer is shown it.
func Clocks(known time.Time, personal PersonalData, l Language) string {
	notification := known.Add(72 * time.Hour)
	final := notification.AddDate(0, 1, 0)
	if final.Day() != notification.Day() { // the month after has no such day: its last
		final = final.AddDate(0, 0, -final.Day())
	}
	text, err := l.text("clocks", struct {
		Known, GDPR, Warning, Notification, Final time.Time
		Personal                                  PersonalData
	}{known, known.Add(72 * time.Hour), known.Add(24 * time.Hour), notification, final, personal})
	if err != nil {
		return "" // the templates are part of the program, and tested
	}
	return text
}

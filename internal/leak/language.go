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
		return fmt.Sprintf("%d %s %d", t.Day(), months[t.Month()-1], t.Year())
	}
	return t.Format("2 January 2006")
}

func (l Language) orWord(t time.Time, word string) string {
	if t.IsZero() {
		return l.word(word)
	}
	return l.when(t)
}

// word translates a code; what it does not know stays as it is.
func (l Language) word(code string) string {
	dutch, english := "", ""
	switch code {
	case "in_brussels":
		dutch, english = "in Brussel", "in Brussels"
	case "not_known":
		dutch, english = "niet bekend", "not known"
	case "goes_on":
		dutch, english = "nog aan de gang, of niet bekend", "it goes on, or is not known"
	case "nobody":
		dutch, english = "niemand", "nobody"
	case "claims":
		dutch, english = "zegt te zijn:", "claims to be:"
	case "kbo":
		dutch, english = "KBO-nummer", "enterprise number (KBO)"
	case "production":
		dutch, english = "productie", "production"
	case string(Suspected):
		dutch, english = "vermoeden", "suspected"
	case string(Confirmed):
		dutch, english = "bevestigd", "confirmed"
	case "personal_yes":
		dutch, english = "bereikbaar", "could be reached"
	case "personal_no":
		dutch, english = "niet bereikbaar", "could not be reached"
	case "personal_unknown":
		dutch, english = "nog niet bekend of ze bereikbaar waren", "not known yet whether it could be reached"
	case "policy_" + string(KeepServing):
		dutch, english = "in gebruik laten", "keep serving"
	case "policy_" + string(Quarantine):
		dutch, english = "stilleggen (quarantaine)", "stop (quarantine)"
	case "policy_" + string(Rotate):
		dutch, english = "vervangen", "rotate"
	default:
		return l.credential(code)
	}
	if l == Dutch {
		return dutch
	}
	return english
}

func (l Language) credential(code string) string {
	dutch, english := "", ""
	switch Credential(code) {
	case Token:
		dutch, english = "access token", "access token"
	case ClientSecret:
		dutch, english = "client secret", "client secret"
	case APIKey:
		dutch, english = "API-sleutel", "API key"
	case PrivateKey:
		dutch, english = "private sleutel van de client", "the client's private key"
	case ManagerLogin:
		dutch, english = "login van onze secrets manager, en daarmee alle gegevens van de client", "the login of our secrets manager, and so all of the client's credentials"
	case Host:
		dutch, english = "een server waarop de gegevens in gebruik zijn", "a host on which the credentials are in use"
	case Unknown:
		dutch, english = "nog niet bekend welke gegevens", "not known yet which of them"
	default:
		return l.action(code)
	}
	if l == Dutch {
		return dutch
	}
	return english
}

func (l Language) action(code string) string {
	dutch, english := "", ""
	switch code {
	case "quarantine":
		dutch, english = "stilleggen van de client", "stop the client"
	case "end_streams":
		dutch, english = "afsluiten van open verbindingen", "end open streams"
	case "remove_files":
		dutch, english = "verwijderen van bestanden met tokens", "remove files with tokens"
	case "stop_children":
		dutch, english = "stoppen van processen met tokens", "stop processes with tokens"
	case "revoke_tokens":
		dutch, english = "intrekken van tokens bij de uitgever", "revoke tokens at the issuer"
	case "rotate":
		dutch, english = "vervangen van de gegevens", "replace the credentials"
	case "install_version":
		dutch, english = "in gebruik nemen van een nieuwe versie", "take a new version into use"
	case "release":
		dutch, english = "vrijgeven van de client", "release the client"
	case "merge_evidence":
		dutch, english = "toevoegen van gegevens van een andere server", "add evidence of another host"
	case string(Done):
		dutch, english = "gelukt", "done"
	case string(Failed):
		dutch, english = "mislukt", "failed"
	case string(Pending):
		dutch, english = "bezig", "in progress"
	case string(NotPossible):
		dutch, english = "niet mogelijk", "not possible"
	default:
		return code
	}
	if l == Dutch {
		return dutch
	}
	return english
}

// revoke says what the issuer is asked to revoke, but for the tokens that were
// issued with it.
func (l Language) revoke(i *Incident, replaced bool) string {
	var dutch, english []string
	add := func(nl, en string, any ...Credential) {
		if slices.ContainsFunc(i.What, func(w Credential) bool { return slices.Contains(any, w) }) {
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

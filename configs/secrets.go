package configs

import (
	"regexp"
	"strings"
	"unicode"

	"github.com/goccy/go-yaml/ast"
)

// Rules of this file:
//   - a configuration holds no secret: a value that looks like one, or that
//     stands under a key that names one, is refused wherever it is;
//   - what is shown of a line has such values masked, character by character,
//     so that columns stay true. When in doubt a line shows less.

// patterns are all that this package looks for. They are compiled once for
// each reading of a configuration.
type patterns struct {
	// shapes are secrets that say so themselves.
	shapes []shape
	// secretKey matches a key under which nothing but a secret would stand,
	// secretPair such a key and its value in a line of text.
	secretKey, secretPair *regexp.Regexp
	placeholder, scheme   *regexp.Regexp // {field} in a header, and what may stand before it
	uuid                  *regexp.Regexp
	variable, stand       *regexp.Regexp // ${NAME}, and what it is for the parser
	leadingKey            *regexp.Regexp // key: or key. at the start of an owner's error
	field, header         *regexp.Regexp // names of fields, of headers
	kbo, host             *regexp.Regexp
}

type shape struct {
	what string
	re   *regexp.Regexp
}

func newPatterns() *patterns {
	const secretNames = `(?:password|passwd|passphrase|pwd|secret|token|api[-_]?key|private[-_]?key|secret[-_]?key|access[-_]?key|secret[-_]?id|authorization)`
	re := regexp.MustCompile
	return &patterns{
		shapes: []shape{
			{"a JSON Web Token", re(`\beyJ[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*)*`)},
			{"an age identity", re(`(?i)\bAGE-SECRET-KEY-[A-Z0-9-]*`)},
			{"a private key", re(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*`)},
			{"a Vault token", re(`\b(?:hv[sbr]\.[A-Za-z0-9_-]{20,}|[sbr]\.[A-Za-z0-9_-]{24,})(?:\.[A-Za-z0-9]+)?`)},
			{"an AWS access key", re(`\b(?:AKIA|ASIA)[A-Z0-9]{16}\b`)},
			{"a URL with a password", re(`://[^/\s:@"']*:[^@/\s"']+@`)},
		},
		secretKey:   re(`(?i)(?:^|.*[^a-z]|.*(?:client|access|refresh|id|auth|api|bearer))` + secretNames + `$`),
		secretPair:  re(`(?i)(` + secretNames + `["']?\s*[:=]\s*)("[^"]*"?|'[^']*'?|(?:[^\s,{}\[\]|>#"']|\{\w+\})(?:[^,{}\]#]|\{\w+\})*)`),
		placeholder: re(`\{[A-Za-z0-9_]+\}`),
		scheme:      re(`^[A-Za-z]{0,12}[ =:]?$`),
		uuid:        re(`(?i)\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b`),
		variable:    re(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`),
		stand:       re(`\$\(([A-Za-z_][A-Za-z0-9_]*)\)`),
		leadingKey:  re(`^([a-z0-9_]+)(?:: ?|\.)`),
		field:       re(`^[A-Za-z_][A-Za-z0-9_.-]{0,63}$`),
		header:      re("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$"),
		kbo:         re(`^(?:BE ?)?[01]\d{3}[. ]?\d{3}[. ]?\d{3}$`),
		host:        re(`^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:.]+)$`),
	}
}

// publicKey says whether values of key are that may be made at random and are no secrets, or paths.
func publicKey(key string) bool {
	switch key {
	case "version", "audience", "audiences", "client_id", "tenant_id", "executable", "directory", "resource",
		"issuer", "subject", "user_id": // of a JWT: names and client ids
		return true
	}
	return strings.HasSuffix(key, "_file")
}

// looksSecret says what v, which stands under key, looks like; empty: nothing.
func (p *patterns) looksSecret(key, v string) string {
	for _, s := range p.shapes {
		if s.re.MatchString(v) {
			return s.what
		}
	}
	if publicKey(key) {
		return ""
	}
	for _, w := range p.words(v) {
		if p.random(w) {
			return "a long random value"
		}
	}
	return ""
}

// words cuts v where a secret would not go on, and leaves UUIDs out, which name
// things. A path or URL is cut at each slash, which base64 may hold.
func (p *patterns) words(v string) []string {
	w := strings.FieldsFunc(p.uuid.ReplaceAllString(v, " "), func(r rune) bool { return !wordRune(r) })
	for _, x := range w {
		if strings.Contains(x, "/") {
			w = append(w, strings.Split(x, "/")...)
		}
	}
	return w
}

func wordRune(r rune) bool {
	return r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("+/=_~-", r))
}

// random says whether w looks drawn, not written: random characters change
// between lower case, upper case and digits far more often than words do.
func (p *patterns) random(w string) bool {
	w = strings.Trim(w, "=-_/")
	if len(w) < 20 {
		return false
	}
	var lower, upper, digit, pairs, changes int
	last := byte(0)
	for i := range len(w) {
		class := byte(0)
		switch c := w[i]; {
		case 'a' <= c && c <= 'z':
			class, lower = 'a', lower+1
		case 'A' <= c && c <= 'Z':
			class, upper = 'A', upper+1
		case '0' <= c && c <= '9':
			class, digit = '0', digit+1
		}
		if class != 0 && last != 0 {
			pairs++
			if class != last {
				changes++
			}
		}
		last = class
	}
	often := func(percent int) bool { return changes*100 >= percent*pairs }
	if lower >= 3 && upper >= 3 {
		return digit > 0 && (often(35) || len(w) >= 32 && often(30)) || often(40)
	}
	// Hexadecimal, base32 and the like.
	return len(w) >= 32 && digit >= 4 && lower+upper >= 4 && often(25)
}

// maskWords hides every part of text that looks like a secret by itself.
func (p *patterns) maskWords(text string) string {
	for _, s := range p.shapes {
		text = s.re.ReplaceAllStringFunc(text, stars)
	}
	for _, w := range p.words(text) {
		if p.random(w) {
			text = strings.ReplaceAll(text, w, stars(w))
		}
	}
	return text
}

// maskLine hides that, and whatever follows a key that names a secret.
func (p *patterns) maskLine(line string) string {
	line = p.secretPair.ReplaceAllStringFunc(line, func(pair string) string {
		m := p.secretPair.FindStringSubmatch(pair)
		if p.harmless(m[2]) {
			return pair
		}
		return m[1] + stars(m[2])
	})
	return p.maskWords(line)
}

// harmless values may stand under a key that names a secret: a header's
// template, and what is no text at all.
func (p *patterns) harmless(v string) bool {
	v = strings.Trim(strings.TrimSpace(v), `"'`)
	switch v {
	case "", "true", "false", "null", "~":
		return true
	}
	rest := p.placeholder.ReplaceAllString(v, "")
	return rest != v && p.scheme.MatchString(rest)
}

func stars(s string) string {
	if url, ok := strings.CutPrefix(s, "://"); ok { // the user and password of one
		return "://" + stars(strings.TrimSuffix(url, "@")) + "@"
	}
	return strings.Repeat("*", len([]rune(s)))
}

// refuseSecrets reports every scalar below n that looks like a secret. key is
// the mapping key above n, outer the one above that.
func (d *decoder) refuseSecrets(n ast.Node, key, outer string) {
	switch n := n.(type) {
	case *ast.MappingNode:
		for _, pair := range n.Values {
			d.refuseSecrets(pair, key, outer)
		}
	case *ast.MappingValueNode:
		name := d.text(n.Key)
		if what := d.re.looksSecret("", name); what != "" {
			d.secretAt(n.Key, "the key looks like "+what)
		}
		d.refuseSecrets(n.Value, name, key)
	case *ast.SequenceNode:
		for _, v := range n.Values {
			d.refuseSecrets(v, key, outer)
		}
	case *ast.TagNode:
		d.refuseSecrets(n.Value, key, outer)
	case *ast.AnchorNode:
		d.refuseSecrets(n.Value, key, outer)
	default:
		d.refuseSecret(n, key, outer)
	}
}

func (d *decoder) refuseSecret(n ast.Node, key, outer string) {
	v := d.text(n)
	if what := d.re.looksSecret(key, v); what != "" {
		d.secretAt(n, "the value of "+key+" looks like "+what)
		return
	}
	if !d.re.secretKey.MatchString(key) || d.re.harmless(v) || (outer == "fields" && d.re.field.MatchString(v)) {
		return
	}
	if key == "secret" {
		d.refused[d.at(n)] = true
		d.problem(d.at(n), "", "secret is text: it has to say where the secret is, and not to be it", "", "as in secret: { provider: NAME, path: PATH }")
		return
	}
	if n.Type() != ast.NullType {
		d.secretAt(n, "a secret seems to stand under "+key)
	}
}

func (d *decoder) secretAt(n ast.Node, message string) {
	at := d.at(n)
	d.refused[at] = true
	d.problem(at, "", message+"; a configuration holds no secret", "",
		"put it into the secrets manager, and replace it there: whoever could read this file has seen it")
}

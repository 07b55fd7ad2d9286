package rotation

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"credentialbroker/internal/durable"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// Rules of this file:
//   - a refresh token is a secret of its own in a secrets manager, never part
//     of the watched bundle, and one host owns it;
//   - each one that the issuer gives has a generation. It is sealed and synced
//     in the state directory, then written to the manager, then used; the
//     highest generation counts, so that the manager may be down;
//   - the key of the seal is in the manager beside the token, so the seal alone
//     is of no use to anybody, and exists before anything is sealed.

// Refresh says where a client's refresh token is.
type Refresh struct {
	Issuer   string // that gives the tokens; New fills it in
	Provider string // the name of the secrets manager
	Ref      providers.Ref
	Owner    string // this host; no other one may use the token
}

// A login is a client's refresh token. It belongs to whoever has the ledger's
// minting turn, but for its status.
type login struct {
	client, place string
	file          string // of the seal

	opened  bool
	token   secret.Secret // empty: nobody has logged in
	key     secret.Secret // of the seal: base64 of 32 bytes; empty: none yet
	gen     uint64
	version providers.Version // of the manager's secret
	pending bool              // sealed, and not in the manager
	manager trouble
	reason  string // why a person has to log in, if token is empty
	shown   string // the version of the token that Deps.Known has; empty: none

	status atomic.Pointer[LoginStatus]
}

// LoginStatus is the state of a refresh token.
type LoginStatus struct {
	Required   bool   // a person has to log in
	Pending    bool   // sealed on this host, and not in the secrets manager
	Reason     string // in words
	Generation uint64 // how often it has been replaced
}

// The fields of the secret.
const (
	fieldToken      = "refresh_token"
	fieldKey        = "seal_key"
	fieldGeneration = "generation"
	fieldOwner      = "owner"
	fieldIssuer     = "issuer"
)

func (l *Ledger) loginOf(client string, r Refresh) *login {
	place, _ := json.Marshal([]any{r.Issuer, r.Provider, r.Ref}) // strings
	sum := sha256.Sum256(place)
	key := hex.EncodeToString(sum[:4]) + ":"
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.logins[key] == nil {
		l.logins[key] = &login{client: client, place: key, file: strings.TrimSuffix(l.file, ".json") + "." + hex.EncodeToString(sum[:4]) + ".login"}
		l.logins[key].publish("")
	}
	return l.logins[key]
}

// id is the token's name in the ledger.
func (l *login) id() versionID {
	return versionID(l.place + "login." + strconv.FormatUint(l.gen, 10))
}

func (l *login) publish(required string) {
	s := &LoginStatus{Required: required != "", Pending: l.pending, Reason: required, Generation: l.gen}
	if s.Reason == "" && l.manager.err != nil {
		s.Reason = "the secrets manager does not take the refresh token: " + l.manager.err.Error()
	}
	l.status.Store(s)
}

// openLogin reads the refresh token from the manager, or from the seal if that
// is newer. The caller has the minting turn.
func (c *Credential) openLogin(ctx context.Context, l *login) error {
	if l.opened {
		return nil
	}
	now := c.deps.Clock.Now()
	if wait := l.manager.until.Until(now); l.manager.err != nil && wait > 0 {
		return &Error{Kind: NoBundle, Code: string(providers.KindOf(l.manager.err)), RetryAfter: wait, Err: l.manager.err,
			Detail: "the secrets manager gave no refresh token: " + l.manager.err.Error()}
	}
	c.deps.Uses.Add(1)
	b, err := c.deps.RefreshProvider.Fetch(ctx, c.cfg.Refresh.Ref, "")
	c.deps.Uses.Add(1)
	if kind := providers.KindOf(err); err != nil && kind != providers.NotFound && kind != providers.Deleted {
		l.manager.fail(now, err, 0)
		l.publish("")
		return &Error{Kind: NoBundle, Code: string(kind), RetryAfter: max(l.manager.until.Until(now), shortestWait), Err: err,
			Detail: "the secrets manager gave no refresh token: " + err.Error()}
	}
	defer b.Wipe()
	l.manager = trouble{}
	l.take(b, *c.cfg.Refresh)
	c.showLogin()
	return nil
}

// take makes what the manager has, and the seal, the login's state.
func (l *login) take(b providers.Bundle, r Refresh) {
	l.token.Wipe()
	l.key.Wipe()
	l.token, l.key = cloned(b, fieldToken), cloned(b, fieldKey)
	l.gen = generation(b)
	l.version, l.pending, l.opened, l.reason = b.Version, false, true, ""
	if l.reason = foreign(b, r); l.reason != "" {
		l.token.Wipe()
		l.token = secret.Secret{}
		return
	}
	gen, token, err := l.unseal()
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil && l.token.Empty():
		l.reason = "there is a sealed refresh token on this host that cannot be opened: " + err.Error()
	case err != nil: // the manager's own is tried
	case gen > l.gen:
		l.token.Wipe()
		l.gen, l.token, l.pending = gen, token, true
		return
	case gen == l.gen && token.Equal(l.token): // it is in the manager
		token.Wipe()
		_ = durable.Remove(l.file)
	default:
		token.Wipe()
	}
	if l.token.Empty() && l.reason == "" {
		l.reason = "nobody has logged in yet"
	}
}

// foreign says why a refresh token is not this host's to use.
func foreign(b providers.Bundle, r Refresh) string {
	if o := text(b, fieldOwner); o != "" && o != r.Owner {
		return fmt.Sprintf("host %.64q owns the refresh token, and this is %.64q: two hosts would end each other's login", o, r.Owner)
	}
	if i := text(b, fieldIssuer); i != "" && i != r.Issuer {
		return fmt.Sprintf("the refresh token is of another issuer, %.200q", i)
	}
	return ""
}

func cloned(b providers.Bundle, field string) secret.Secret {
	s, err := b.Fields[field].Clone()
	if err != nil {
		return secret.Secret{}
	}
	return s
}

// text is a field that is no secret.
func text(b providers.Bundle, field string) (s string) {
	_ = b.Fields[field].Use(func(v []byte) error { s = string(v); return nil })
	return s
}

// generation is 0 for a token that a person has stored.
func generation(b providers.Bundle) uint64 {
	gen, err := strconv.ParseUint(text(b, fieldGeneration), 10, 40) // one a second for 30,000 years
	if err != nil {
		return 0
	}
	return gen
}

// loginKey makes sure that there is a key, in the manager too, before there is
// anything to seal.
func (c *Credential) loginKey(ctx context.Context, l *login) error {
	if _, err := l.cipher(); err == nil {
		return nil
	}
	l.key.Wipe() // it is none
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it does not fail
	l.key = secret.New([]byte(base64.StdEncoding.EncodeToString(key)))
	clear(key)
	if err := c.pushLogin(ctx, l); err != nil {
		l.key.Wipe()
		l.key, l.opened = secret.Secret{}, false // whatever came of it is read first
		return &Error{Kind: NoBundle, Code: string(providers.KindOf(err)), RetryAfter: longestWait, Err: err,
			Detail: "the secrets manager has to take refresh tokens, and does not: " + err.Error()}
	}
	return nil
}

// pushLogin writes the login to the manager. Until that has succeeded, the
// seal counts.
func (c *Credential) pushLogin(ctx context.Context, l *login) error {
	w, ok := c.deps.RefreshProvider.(providers.Writer)
	if !ok {
		return &providers.Error{Kind: providers.Unsupported, Ref: c.cfg.Refresh.Ref, Message: "this secrets manager can only be read", Hint: "name one under refresh: that can be written"}
	}
	fields := map[string]secret.Secret{fieldKey: l.key, fieldOwner: secret.FromString(c.cfg.Refresh.Owner), fieldIssuer: secret.FromString(c.cfg.Refresh.Issuer),
		fieldGeneration: secret.FromString(strconv.FormatUint(l.gen, 10))}
	if !l.token.Empty() {
		fields[fieldToken] = l.token
	}
	ctx, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	c.deps.Uses.Add(1)
	v, err := w.Put(ctx, c.cfg.Refresh.Ref, fields, l.version)
	if providers.KindOf(err) == providers.Conflict {
		v, err = c.resolve(ctx, w, l, fields)
	}
	c.deps.Uses.Add(1)
	now := c.deps.Clock.Now()
	if err != nil {
		l.manager.fail(now, err, 0)
		l.publish(l.reason)
		return err
	}
	l.version, l.pending, l.manager = v, false, trouble{}
	l.publish(l.reason)
	return l.unsealed()
}

// unsealed removes the seal, unless it holds what nobody else has.
func (l *login) unsealed() error {
	gen, token, err := l.unseal()
	defer token.Wipe()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil || gen > l.gen:
		return l.keepAside()
	}
	return durable.Remove(l.file)
}

// keepAside keeps a seal that is about to be replaced and may hold the newest
// token: its key, or the secret before, may come back.
func (l *login) keepAside() error {
	if err := os.Rename(l.file, l.file+".old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// resolve looks who has written in between: this process, whose answer was
// lost; a person, who restored an old version; or another host.
func (c *Credential) resolve(ctx context.Context, w providers.Writer, l *login, fields map[string]secret.Secret) (providers.Version, error) {
	b, err := c.deps.RefreshProvider.Fetch(ctx, c.cfg.Refresh.Ref, "")
	if err != nil {
		return "", err
	}
	defer b.Wipe()
	gen := generation(b)
	why := foreign(b, *c.cfg.Refresh)
	switch {
	case why != "":
		l.token.Wipe()
		l.token, l.pending, l.reason = secret.Secret{}, false, why
		_ = l.keepAside()
		return "", &providers.Error{Kind: providers.Conflict, Ref: c.cfg.Refresh.Ref, Message: l.reason}
	case gen == l.gen && b.Fields[fieldToken].Equal(l.token) && b.Fields[fieldKey].Equal(l.key):
		return b.Version, nil
	}
	return w.Put(ctx, c.cfg.Refresh.Ref, fields, b.Version)
}

// sealed is the file's content.
type sealed struct {
	Format     int    `json:"format"`
	Place      string `json:"place"`
	Generation uint64 `json:"generation"`
	Box        []byte `json:"box"` // nonce and ciphertext, AES-256-GCM
}

const sealFormat = 1

func (l *login) seal() error {
	box, err := l.cipher()
	if err != nil {
		return err
	}
	nonce := make([]byte, box.NonceSize(), box.NonceSize()+l.token.Len()+box.Overhead())
	_, _ = rand.Read(nonce) // it does not fail
	s := sealed{Format: sealFormat, Place: l.place, Generation: l.gen}
	err = l.token.Use(func(b []byte) error {
		s.Box = box.Seal(nonce, nonce, b, l.bound(s.Generation))
		return nil
	})
	if err != nil {
		return err
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if gen, token, err := l.unseal(); err != nil || gen >= l.gen {
		token.Wipe()
		_ = l.keepAside()
	} else {
		token.Wipe()
	}
	return durable.Replace(l.file, data)
}

func (l *login) unseal() (gen uint64, token secret.Secret, err error) {
	data, err := os.ReadFile(l.file)
	if err != nil {
		return 0, secret.Secret{}, err
	}
	var s sealed
	if err := json.Unmarshal(data, &s); err != nil {
		return 0, secret.Secret{}, fmt.Errorf("%s is damaged", filepath.Base(l.file))
	}
	switch {
	case s.Format != sealFormat:
		return 0, secret.Secret{}, fmt.Errorf("%s has format %d, this version knows %d", filepath.Base(l.file), s.Format, sealFormat)
	case s.Place != l.place:
		return 0, secret.Secret{}, fs.ErrNotExist // of another configuration
	case l.key.Empty():
		return 0, secret.Secret{}, errors.New("its key is not in the secrets manager")
	}
	box, err := l.cipher()
	if err != nil {
		return 0, secret.Secret{}, err
	}
	if len(s.Box) < box.NonceSize() {
		return 0, secret.Secret{}, fmt.Errorf("%s is damaged", filepath.Base(l.file))
	}
	n := box.NonceSize()
	plain, err := box.Open(nil, s.Box[:n], s.Box[n:], l.bound(s.Generation))
	if err != nil {
		return 0, secret.Secret{}, errors.New("its key in the secrets manager is another one")
	}
	return s.Generation, secret.New(plain), nil
}

// bound is what the seal holds for besides its content.
func (l *login) bound(gen uint64) []byte {
	return fmt.Appendf(nil, "refresh token\n%s\n%s\n%d", l.client, l.place, gen)
}

func (l *login) cipher() (box cipher.AEAD, err error) {
	err = l.key.Use(func(b []byte) error {
		key := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
		defer func() { clear(key) }()
		n, err := base64.StdEncoding.Decode(key, b)
		if err != nil || n != 32 {
			return errors.New("seal_key in the secrets manager is not a key")
		}
		block, err := aes.NewCipher(key[:n])
		if err == nil {
			box, err = cipher.NewGCM(block)
		}
		return err
	})
	return box, err
}

// Package azure reads, and writes, secrets in Azure Key Vault.
//
// Key Vault has no call that describes one version, so the cheap check lists
// the versions' properties, which holds no value. It wants the permission to
// list (data action readMetadata, part of the role Key Vault Secrets User);
// where that is missing, each check reads the value. Creation times count
// whole seconds: while the two newest versions share one, only a read tells
// which is current.
//
// Key Vault hands out a secret that has expired, or is not valid yet, as if
// nothing were; this package does not. In force is the newest version whose
// nbf has passed: until then the one before it serves, if versions may be
// listed. A version in force that has expired, or is disabled, is an error:
// what it replaced is no substitute.
package azure

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"credentialbroker/internal/clock"
	"credentialbroker/providers"
)

// provider is a providers.Provider, Writer and Egress.
type provider struct {
	c     Config
	clk   clock.Clock
	host  string // of the vault
	vault *doer
	login *login

	mu  sync.Mutex
	api *azsecrets.Client // nil: to be made, with a new login
	gen int               // counts the clients that were thrown away
}

// Open makes a provider. It connects to nothing: errors are those of the
// configuration, or of the files that it names.
//
// Ref.Path is a secret's name; Ref.Version a version's id, empty the one in force.
func Open(c Config, clk clock.Clock) (providers.Provider, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	t, err := c.Transport()
	if err != nil {
		return nil, err
	}
	l, err := newLogin(c)
	if err != nil {
		return nil, err
	}
	u := checkURL(c.VaultURL)
	return &provider{c: c, clk: clk, host: u.Host, login: l, vault: &doer{httpClient(t), u.Host}}, nil
}

// client gives the SDK's client and its generation.
func (p *provider) client() (*azsecrets.Client, int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.api != nil {
		return p.api, p.gen, nil
	}
	cred, err := p.login.credential(p.gen > 0)
	if err != nil {
		return nil, p.gen, err
	}
	p.api, err = azsecrets.NewClient("https://"+p.host, cred, &azsecrets.ClientOptions{
		ClientOptions:                        options(p.vault),
		DisableChallengeResourceVerification: loopback(checkURL(p.c.VaultURL).Hostname()),
	})
	return p.api, p.gen, err
}

// options are those of every SDK client here: no retries, no word about us.
func options(t policy.Transporter) azcore.ClientOptions {
	return azcore.ClientOptions{Transport: t, Retry: policy.RetryOptions{MaxRetries: -1},
		Telemetry: policy.TelemetryOptions{Disabled: true}}
}

// renew throws client and login away, unless that was done since gen.
func (p *provider) renew(gen int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gen == gen {
		p.api, p.gen = nil, gen+1
	}
}

// call makes one call and, if its token is refused, logs in anew and makes it
// once more. A login that fails is not kept either: its files may change.
func call[T any](ctx context.Context, p *provider, f func(*azsecrets.Client) (T, error)) (T, error) {
	var out T
	for try := 0; ; try++ {
		api, gen, err := p.client()
		if err == nil {
			if out, err = f(api); err == nil {
				return out, nil
			}
		}
		refused, l := tokenRefused(err), loginFault(err)
		if ctx.Err() == nil && (refused || l != nil && l.Kind == providers.LoginFailed) {
			p.renew(gen)
		}
		if !refused || try > 0 || ctx.Err() != nil {
			return out, err
		}
	}
}

// Fetch implements providers.Provider.
func (p *provider) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	if err := checkRef(ref); err != nil {
		return providers.Bundle{}, err
	}
	if have != "" {
		unchanged, err := p.unchanged(ctx, ref, have)
		if err != nil {
			return providers.Bundle{}, err
		}
		if unchanged {
			return providers.Bundle{}, providers.ErrUnchanged
		}
	}
	b, err := p.read(ctx, ref)
	if kind := providers.KindOf(err); ref.Version == "" && (kind == providers.NotYetValid || kind == providers.Disabled) {
		b, err = p.readBefore(ctx, ref, err)
	}
	if err == nil && b.Version == have {
		b.Wipe()
		return providers.Bundle{}, providers.ErrUnchanged
	}
	return b, err
}

// readBefore reads the version in force where the newest is to come. why is
// what is wrong with the newest, and the error where there is no other.
func (p *provider) readBefore(ctx context.Context, ref providers.Ref, why error) (providers.Bundle, error) {
	list, err := p.versions(ctx, ref)
	if err != nil {
		return providers.Bundle{}, why
	}
	v, sure := p.inForce(list)
	if !sure || !list[v].Enabled {
		return providers.Bundle{}, why
	}
	ref.Version = v
	return p.read(ctx, ref)
}

// inForce gives the newest version whose nbf has passed, and whether no other
// was created in the same second.
func (p *provider) inForce(list map[providers.Version]attributes) (v providers.Version, sure bool) {
	now := p.clk.Now().Wall
	begun := map[providers.Version]attributes{}
	for v, a := range list {
		if !moment(a.Nbf).After(now) {
			begun[v] = a
		}
	}
	return newest(begun)
}

// unchanged says whether have is surely what a read would give.
func (p *provider) unchanged(ctx context.Context, ref providers.Ref, have providers.Version) (bool, error) {
	list, err := p.versions(ctx, ref)
	switch kind := providers.KindOf(err); {
	case kind == providers.Denied: // to list: a read may be allowed
		return false, nil
	case err != nil:
		return false, err
	}
	wanted, sure := ref.Version, true
	if wanted == "" {
		wanted, sure = p.inForce(list)
	}
	if v := list[have]; sure && wanted == have && v.Enabled {
		return true, p.checkValidity(v.bundle(), ref)
	}
	return false, nil
}

// attributes are those of one version, as Key Vault's REST API has them.
type attributes struct {
	Enabled           bool
	Created, Nbf, Exp int64 // seconds since 1970; 0: none
}

func (a attributes) bundle() providers.Bundle {
	return providers.Bundle{Created: moment(a.Created), NotBefore: moment(a.Nbf), Expires: moment(a.Exp)}
}

func moment(seconds int64) time.Time {
	if seconds <= 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0).UTC()
}

// maxPages bounds a list: Key Vault gives 25 versions a page.
const maxPages = 200

func (p *provider) versions(ctx context.Context, ref providers.Ref) (map[providers.Version]attributes, error) {
	list, err := call(ctx, p, func(api *azsecrets.Client) (map[providers.Version]attributes, error) {
		list := map[providers.Version]attributes{}
		pager := api.NewListSecretPropertiesVersionsPager(ref.Path, nil)
		for page := 0; pager.More(); page++ {
			if page == maxPages {
				return nil, errNotAnAnswer
			}
			out, err := pager.NextPage(ctx)
			if err != nil {
				return nil, err
			}
			for _, s := range out.Value {
				if s == nil || s.ID == nil || s.Attributes == nil {
					return nil, errNotAnAnswer
				}
				a := s.Attributes
				list[versionOf(string(*s.ID))] = attributes{Enabled: a.Enabled == nil || *a.Enabled,
					Created: unix(a.Created), Nbf: unix(a.NotBefore), Exp: unix(a.Expires)}
			}
		}
		return list, nil
	})
	if err != nil {
		return nil, p.fault(ctx, err, ref, "list")
	}
	return list, nil
}

func unix(t *time.Time) int64 {
	if t == nil {
		return 0
	}
	return t.Unix()
}

// versionOf takes the id of …/secrets/NAME/ID.
func versionOf(id string) providers.Version {
	return providers.Version(id[strings.LastIndexByte(id, '/')+1:])
}

// newest gives the version that was created last, and whether no other was
// created in the same second.
func newest(list map[providers.Version]attributes) (best providers.Version, sure bool) {
	for v, a := range list {
		switch b := list[best]; {
		case best == "" || a.Created > b.Created:
			best, sure = v, true
		case a.Created == b.Created:
			sure = false
		}
	}
	return best, sure
}

func (p *provider) read(ctx context.Context, ref providers.Ref) (providers.Bundle, error) {
	a, err := call(ctx, p, func(api *azsecrets.Client) (answer, error) {
		return captured(ctx, func(ctx context.Context) error {
			_, err := api.GetSecret(ctx, ref.Path, string(ref.Version), nil)
			return err
		})
	})
	if err != nil {
		return providers.Bundle{}, p.fault(ctx, err, ref, "get")
	}
	defer a.wipe()
	version, attr, err := a.describe()
	value, ok := a["value"]
	if err != nil || !ok {
		return providers.Bundle{}, p.fault(ctx, errNotAnAnswer, ref, "")
	}
	b := attr.bundle()
	b.Version = version
	if !attr.Enabled {
		return providers.Bundle{}, &providers.Error{Kind: providers.Disabled, Provider: name, Ref: ref, Message: "this version is disabled"}
	}
	if err := p.checkValidity(b, ref); err != nil {
		return providers.Bundle{}, err
	}
	payload, err := value.AppendTo(nil)
	if err != nil {
		return providers.Bundle{}, p.fault(ctx, err, ref, "")
	}
	if b.Fields, err = providers.Parse(payload); err != nil {
		return providers.Bundle{}, withRef(err, ref)
	}
	return b, nil
}

// describe reads what an answer says beside the value.
func (a answer) describe() (providers.Version, attributes, error) {
	attr := attributes{Enabled: true}
	id, err := a["id"].AppendTo(nil)
	if err != nil || len(id) == 0 {
		return "", attr, errNotAnAnswer
	}
	if b, _ := a["attributes"].AppendTo(nil); len(b) > 0 {
		if err := json.Unmarshal(b, &attr); err != nil {
			return "", attr, errNotAnAnswer
		}
	}
	return versionOf(string(id)), attr, nil
}

func (p *provider) checkValidity(b providers.Bundle, ref providers.Ref) error {
	if err := b.CheckValidity(p.clk.Now().Wall); err != nil {
		return withRef(err, ref)
	}
	return nil
}

// checkRef keeps to what Key Vault takes as names: they become part of a URL.
func checkRef(ref providers.Ref) error { return Config{}.CheckRef(ref) }

// CheckRef says whether ref can name a secret.
func (Config) CheckRef(ref providers.Ref) error {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-"
	for _, s := range []string{ref.Path, string(ref.Version)} {
		if len(s) > 127 || strings.Trim(s, letters) != "" || ref.Path == "" {
			return &providers.Error{Kind: providers.NotFound, Provider: name, Ref: ref, Message: fmt.Sprintf("%q cannot be a secret or version in Key Vault", s),
				Hint: "names there are 1 to 127 letters, digits and hyphens"}
		}
	}
	return nil
}

// Close implements providers.Provider. There is nothing in the background.
func (p *provider) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.api = nil
	return nil
}

// Endpoints implements providers.Egress.
func (p *provider) Endpoints() []string { return p.c.hosts() }

// sameHost says whether u is at the vault.
func (d *doer) sameHost(u *url.URL) bool { return u.Host == d.host }

package broker

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/keys"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

const (
	liveTimeout    = 60 * time.Second
	liveParallel   = 8
	skewTolerated  = 5 * time.Second
	certificateDue = 30 * 24 * time.Hour
)

// Live tries what the daemon depends on, from inside of it, and calls report
// for every finding, one at a time: the secrets managers' permissions, the TLS
// chain and clock of every issuer, and a login within the budget. A token that
// is in hand already is proof enough; no secret is spent.
func (b *Broker) Live(ctx context.Context, report func(client.Finding)) {
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	var one sync.Mutex
	say := func(check, target string, level client.Level, format string, args ...any) {
		one.Lock()
		defer one.Unlock()
		report(client.Finding{Check: check, Target: target, Level: level, Detail: fmt.Sprintf(format, args...)})
	}
	set := b.clients.Load()
	var wg sync.WaitGroup
	slots := make(chan struct{}, liveParallel)
	chains := map[string]*oidc.Profile{}
	managers := map[string]providers.Perishable{}
	for _, name := range set.names {
		cl := set.byName[name]
		if cl.issuer != nil && !cl.issuer.Local() {
			p := cl.cfg.Issuer
			chains[cmp.Or(p.TokenEndpoint, p.MetadataURI, p.Issuer)] = p
		}
		if p, ok := cl.cfg.Provider.(providers.Perishable); ok {
			managers[cl.cfg.ProviderName] = p
		}
		for _, err := range cl.problems {
			say("allow", name, client.Warning, "%v", err)
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			b.liveClient(ctx, cl, say)
		})
	}
	for name, p := range managers {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			b.liveManager(ctx, name, p, say)
		})
	}
	for endpoint, p := range chains {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			liveChain(ctx, endpoint, p, b.o.Clock.Now().Wall, say)
		})
	}
	wg.Wait()
}

type say func(check, target string, level client.Level, format string, args ...any)

func (b *Broker) liveClient(ctx context.Context, cl *cachedClient, say say) {
	name := cl.cfg.Name
	var have providers.Version
	if live := cl.cred.Current(); live != nil {
		have = live.Version
	}
	b.uses.Add(1)
	bundle, err := providers.Load(ctx, cl.cfg.Provider, cl.cfg.Rotation.Spec, have)
	bundle.Wipe()
	b.uses.Add(1)
	switch {
	case errors.Is(err, providers.ErrUnchanged):
		say("secret", name, client.OK, "the secrets manager gives %s, version %s", cl.cfg.Rotation.Spec.String(), have)
	case err != nil:
		say("secret", name, client.Error, "%v", err)
	default:
		say("secret", name, client.OK, "the secrets manager gives %s, version %s", cl.cfg.Rotation.Spec.String(), bundle.Version)
	}
	b.liveCertificate(cl, say)
	liveLogin(cl, say)
	if cl.cfg.Probe != nil {
		if err := b.tried(ctx, cl); err != nil {
			say("probe", name, client.Error, "%s", detail(err))
		} else {
			say("probe", name, client.OK, "the API takes the client's headers")
		}
	}
	if cl.issuer == nil {
		return
	}
	e, err := cl.entry(cl.cfg.Default, b.o.Clock.Now())
	if err != nil {
		say("issuer", name, client.Error, "%s", detail(err))
		return
	}
	h, now, err := b.token(ctx, e, 0)
	if err != nil {
		say("issuer", name, client.Error, "%s", detail(err))
		return
	}
	if cl.issuer.Local() {
		say("issuer", name, client.OK, "the broker signs the tokens itself: nothing but a probe shows whether the API takes them")
		return
	}
	say("issuer", name, client.OK, "a token of version %s serves for %s", h.live.Version, h.end.Until(now).Round(time.Second))
	if skew := h.token.Skew; skew.Abs() > skewTolerated {
		say("clock", name, client.Warning, "the issuer's clock is %s ahead of ours: check that this host's time is synchronised", skew.Round(time.Second))
	}
	switch in, known, err := b.introspected(ctx, cl, h.token.Access); {
	case err != nil:
		say("introspection", name, client.Warning, "%s", detail(err))
	case known && !in.Active:
		say("introspection", name, client.Error, "the issuer says that its own token is not active: broker revoke %s makes the broker fetch another", name)
	case known:
		say("introspection", name, client.OK, "the issuer says that the token is active")
	}
	if h.token.Narrowed {
		say("scope", name, client.Warning, "the issuer granted scope %q where %q was asked for", h.token.Scope, e.want.Scope)
	}
}

// liveManager looks when the login at a secrets manager ends: nobody else
// announces it, and then every client fails at once.
func (b *Broker) liveManager(ctx context.Context, name string, p providers.Perishable, say say) {
	what, end, err := p.LoginEnd(ctx)
	left := end.Sub(b.o.Clock.Now().Wall)
	switch {
	case providers.KindOf(err) == providers.Denied:
		say("login", name, client.OK, "when the login ends is not known: %v", err)
	case err != nil:
		say("login", name, client.Error, "%v", err)
	case end.IsZero():
	case left < certificateDue:
		say("login", name, client.Warning, "%s ends on %s: replace it before (broker setup seals the next one)", what, end.UTC().Format(time.RFC3339))
	default:
		say("login", name, client.OK, "%s is valid until %s", what, end.UTC().Format(time.RFC3339))
	}
}

// liveCertificate looks at the client's own certificate, whose end no issuer
// announces.
func (b *Broker) liveCertificate(cl *cachedClient, say say) {
	live := cl.cred.Current()
	if live == nil || !cl.wants(fieldCertificate) {
		return
	}
	c, err := keys.CertificateOf(live.Fields[fieldCertificate])
	if err != nil {
		say("certificate", cl.cfg.Name, client.Error, "%v", err)
		return
	}
	level, hint := client.OK, ""
	left := c.NotAfter.Sub(b.o.Clock.Now().Wall)
	if left < certificateDue {
		level, hint = client.Warning, ": renew it, and have the issuer know the new one first"
	}
	say("certificate", cl.cfg.Name, level, "the client's certificate is valid until %s%s", c.NotAfter.UTC().Format(time.RFC3339), hint)
}

// liveLogin looks at the refresh token, and at whether the next one could be
// stored.
func liveLogin(cl *cachedClient, say say) {
	r := cl.cfg.Rotation.Refresh
	if r == nil {
		return
	}
	name, s := cl.cfg.Name, cl.cred.Status().Login
	if _, writes := cl.cfg.RefreshProvider.(providers.Writer); !writes {
		say("refresh", name, client.Error, "the secrets manager %s can only be read here, and refresh tokens have to be written: name another under refresh:", r.Provider)
		return
	}
	switch {
	case s.Required:
		say("refresh", name, client.Error, "%s", s.Reason)
	case s.Pending:
		say("refresh", name, client.Error, "the newest refresh token is sealed on this host alone: %s", s.Reason)
	default:
		say("refresh", name, client.OK, "generation %d of the refresh token is in %s, owned by %s", s.Generation, r.Ref.String(), r.Owner)
	}
}

// detail is an error's sentence, without the cause that it was made from.
func detail(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Detail
	}
	return err.Error()
}

// liveChain verifies the certificate of an issuer by the rules of its profile.
func liveChain(ctx context.Context, endpoint string, p *oidc.Profile, now time.Time, say say) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "https" {
		say("tls", endpoint, client.Warning, "this is not https")
		return
	}
	addr := u.Host
	if u.Port() == "" {
		addr = net.JoinHostPort(u.Hostname(), "443")
	}
	cfg, err := p.TLS()
	if err != nil {
		say("tls", addr, client.Error, "%v", err)
		return
	}
	conn, err := p.Dial(ctx, addr)
	if err != nil {
		say("tls", addr, client.Error, "cannot connect: %v; is the firewall open? broker check --egress lists what it has to allow", err)
		return
	}
	defer conn.Close()
	cfg.ServerName = u.Hostname()
	t := tls.Client(conn, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		say("tls", addr, client.Error, "%v", err)
		return
	}
	left := t.ConnectionState().PeerCertificates[0].NotAfter.Sub(now)
	level, hint := client.OK, ""
	if left < certificateDue {
		level, hint = client.Warning, ": the issuer has to renew it"
	}
	say("tls", addr, level, "%s, certificate valid for %d days%s", tls.VersionName(t.ConnectionState().Version), int(left/(24*time.Hour)), hint)
}

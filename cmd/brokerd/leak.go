package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"credentialbroker/configs"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/leak"
	"credentialbroker/internal/response"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// respond prepares the configuration for whoever answers leaks.
func (s *server) respond(next *opened) (*response.Prepared, error) {
	c := responseConfig(next.config)
	if s.response == nil {
		var err error
		s.response, err = response.New(response.Options{Dir: s.paths.state, Host: leakHost(), Broker: s.broker, Audit: s.audit, AuditDir: filepath.Join(s.paths.state, "audit"),
			Clock: s.clock, Log: s.log}, c)
		if err != nil {
			return nil, err
		}
	}
	return s.response.Prepare(c)
}

// leakHost is this machine's name as records have it.
func leakHost() string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, strings.ToLower(hostName()))
	return strings.TrimLeft(name, ".-")
}

// responseConfig is what a configuration says of leaks.
func responseConfig(c *configs.Config) response.Config {
	r := response.Config{Clients: map[string]response.Client{}}
	language := ""
	if l := c.Leak; l != nil {
		r.Sender = leak.Sender{Organisation: l.Organisation, Name: l.OnCall.Name, Phone: l.OnCall.Phone, From: l.SMTP.From, ReplyTo: l.SMTP.ReplyTo}
		r.CopyTo, r.Protection = l.CopyTo, l.Protection()
		if len(r.CopyTo) == 0 {
			r.CopyTo = []string{cmp.Or(l.SMTP.ReplyTo, l.SMTP.From)}
		}
		for _, relay := range l.Relays() {
			one := relay.Relay
			one.Login = relay.Secret != nil
			r.Relays = append(r.Relays, one)
		}
		r.UndeliveredAfter, language = l.UndeliveredAfter.D(), l.Language
	}
	users := map[string][]string{} // of each secret
	for name, one := range c.Clients {
		for _, ref := range one.Secret.Refs() {
			place := broker.SecretPlace(one.Secret.Provider, ref)
			users[place] = append(users[place], name)
		}
	}
	for name, one := range c.Clients {
		client := responseClient(one, language)
		for _, ref := range one.Secret.Refs() {
			place := broker.SecretPlace(one.Secret.Provider, ref)
			client.Places, client.Shares = append(client.Places, place), append(client.Shares, users[place]...)
		}
		slices.Sort(client.Shares)
		client.Shares = slices.DeleteFunc(slices.Compact(client.Shares), func(other string) bool { return other == name })
		r.Clients[name] = client
	}
	return r
}

func responseClient(c configs.Client, language string) response.Client {
	order := []leak.Language{leak.Dutch, leak.English}
	if cmp.Or(language, map[string]string{"oauth2": "en"}[c.Preset]) == "en" {
		slices.Reverse(order)
	}
	return response.Client{Issuer: leak.Issuer{Name: cmp.Or(c.IssuerName, issuerHost(c)), Contacts: c.LeakContacts, Rotation: cmp.Or(c.Rotation.Kind, "by-request")},
		Environment: c.Environment, Languages: order, Confirmed: leak.Policy(c.Leak.Confirmed), Suspected: leak.Policy(c.Leak.Suspected), Automatic: c.Leak.Automatic == "send", Steps: c.Rotation.Steps,
		Hosts: c.Hosts, Keys: c.ClientAuth == oidc.PrivateKeyJWT, OneSecret: c.Secrets == "one"}
}

// issuerHost names an issuer that nobody has named; empty: it has no host.
func issuerHost(c configs.Client) string {
	for _, text := range []string{c.Issuer, c.TokenEndpoint, c.Probe.URL} {
		if u, err := url.Parse(text); err == nil && u.Hostname() != "" {
			return u.Hostname()
		}
	}
	return ""
}

const (
	loginEvery = time.Hour
	loginRetry = 30 * time.Second
)

// relayLogins keeps at hand the logins of the mail relays, and the keys that
// sign reports and the webhook's messages: when they are needed, the secrets
// manager may be what is down. What cannot be read stays what it was.
func (s *server) relayLogins(ctx context.Context) error {
	said := ""
	for {
		wait := loginEvery
		err := s.readLogins(ctx)
		if err != nil {
			wait = loginRetry
		}
		if text := fmt.Sprint(err); err != nil && text != said && ctx.Err() == nil {
			s.log.Warn("the login of a mail relay, or a key that signs reports or alarms, cannot be read; this is tried again", "error", err)
			said = text
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.relogin:
		case <-time.After(wait):
		}
	}
}

func (s *server) readLogins(ctx context.Context) error {
	s.mu.Lock()
	o := s.current
	s.mu.Unlock()
	var errs []error
	if w := o.config.Alarm.Webhook; w != nil {
		if err := s.webhook.read(ctx, o.providers[w.Secret.Provider], w.Secret); err != nil {
			errs = append(errs, fmt.Errorf("alarm.webhook: %w", err))
		}
	} else {
		s.webhook.forget()
	}
	if o.config.Leak == nil {
		return errors.Join(errs...)
	}
	if sign := o.config.Leak.Sign; sign != nil {
		err := s.readBundle(ctx, o, sign.Secret, func(fields map[string]secret.Secret) error {
			if fields["private_key"].Empty() {
				return errors.New("its secret needs the field private_key")
			}
			return s.response.SetSigningKey(fields["private_key"])
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("leak.sign: %w", err))
		}
	}
	for n, relay := range o.config.Leak.Relays() {
		if relay.Secret == nil {
			continue
		}
		err := s.readBundle(ctx, o, *relay.Secret, func(fields map[string]secret.Secret) error {
			user, password := fields["username"], fields["password"]
			if user.Empty() || password.Empty() {
				return errors.New("its secret needs the fields username and password")
			}
			return user.Use(func(name []byte) error { return s.response.SetLogin(n, string(name), password) })
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", relay.Address(), err))
		}
	}
	return errors.Join(errs...)
}

// readBundle reads a secret, and gives its fields to use for a moment.
func (s *server) readBundle(ctx context.Context, o *opened, from configs.Secret, use func(fields map[string]secret.Secret) error) error {
	ctx, cancel := context.WithTimeout(ctx, loginRetry)
	defer cancel()
	b, err := providers.Load(ctx, o.providers[from.Provider], from.Spec, "")
	if err != nil {
		return err
	}
	defer b.Wipe()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != o {
		return nil // the relay may be another one now; a reload asks for its logins itself
	}
	return use(b.Fields)
}

// incidentMetrics are counts of incidents and their mails.
type incidentMetrics struct {
	s                *server
	incidents, mails *prometheus.Desc
}

func (s *server) incidentMetrics() *incidentMetrics {
	const ns = "credential_broker_"
	return &incidentMetrics{s, prometheus.NewDesc(ns+"incidents", "Incidents: draft (a suspicion that waits for somebody), open, closed.", []string{"state"}, nil),
		prometheus.NewDesc(ns+"incident_mails", "Reports of incidents: queued, sent, refused by every relay, or late (in time taken by none, or refused).", []string{"state"}, nil)}
}

// Describe implements prometheus.Collector.
func (m *incidentMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.incidents; ch <- m.mails }

// Collect implements prometheus.Collector.
func (m *incidentMetrics) Collect(ch chan<- prometheus.Metric) {
	_, counts, mails := m.s.response.Summaries()
	for desc, values := range map[*prometheus.Desc]map[string]int{m.incidents: counts, m.mails: mails} {
		for _, state := range slices.Sorted(maps.Keys(values)) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(values[state]), state)
		}
	}
}

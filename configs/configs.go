// Package configs reads the configuration strictly, and holds what ships with
// it: presets, examples, the JSON Schema for editors, units.
//
// [Load] gives a whole configuration or every mistake of every file. Each
// section's type belongs to the package that it configures; this one only
// composes them.
package configs

//go:generate env UPDATE=1 go test -count=1 -run TestSchemaIsUpToDate .

import (
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/files"
	"credentialbroker/internal/gate"
	"credentialbroker/internal/leak"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/proxy"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/providers/exec"
	"credentialbroker/providers/file"
	"credentialbroker/providers/systemd"
)

// Config is a whole configuration: broker.yaml and the files of clients.d
// beside it.
type Config struct {
	// Providers are the secrets managers, by a name of your choice.
	Providers map[string]Provider `yaml:"providers"`
	// Clients are the registered OAuth clients, by the name that consumers
	// use. Each may have a file of its own in clients.d, which then holds
	// clients: with this one key.
	Clients map[string]Client `yaml:"clients"`
	// Leak says who reports a leak, and how. Missing: leaks cannot be
	// reported by mail.
	Leak *Leak `yaml:"leak"`
	// LeakByHand is why there is no section leak: a person reports leaks.
	// Missing: broker check refuses a client of production without that section.
	LeakByHand string `yaml:"leak_by_hand"`
	// Audit is the audit log.
	Audit audit.Config `yaml:"audit"`
	// Admin says who may administer the daemon.
	Admin Admin `yaml:"admin"`
	// Limits bound what one user of the machine may do.
	Limits Limits `yaml:"limits"`
	// Sockets are the daemon's own; under systemd its units say more.
	Sockets Sockets `yaml:"sockets"`
	// Metrics are for monitoring that cannot read the administrators' socket.
	Metrics Metrics `yaml:"metrics"`
	// Alarm says whom each alarm is told beside the journal. Missing: nobody.
	Alarm Alarm `yaml:"alarm"`
	// BrownOut keeps what serves on this host, so that the daemon can start while
	// a secrets manager is down. Missing: it cannot.
	BrownOut *BrownOut `yaml:"brown_out"`
	// State is the directory of audit log, incidents and budgets. Missing:
	// /var/lib/credential-broker for root or under systemd, else
	// credential-broker in $XDG_STATE_HOME.
	State string `yaml:"state"`

	file string // broker.yaml itself
}

// Provider is one secrets manager: exactly one of its keys beside write is set.
type Provider struct {
	// Vault is HashiCorp Vault or OpenBao.
	Vault *vaultConfig `yaml:"vault"`
	// AWS is AWS Secrets Manager.
	AWS *awsConfig `yaml:"aws"`
	// Azure is Azure Key Vault.
	Azure *azureConfig `yaml:"azure"`
	// GCP is Google Cloud Secret Manager.
	GCP *gcpConfig `yaml:"gcp"`
	// File is a directory of age-encrypted files.
	File *file.Config `yaml:"file"`
	// Systemd is the sealed credentials of the daemon's own unit.
	Systemd *systemd.Config `yaml:"systemd"`
	// Exec is any other manager: a command that prints a bundle as JSON.
	Exec *exec.Config `yaml:"exec"`
	// Write names another provider: the same manager, with a login that may
	// write what an administrator brings (broker intake) and new keys (broker
	// keys), and is used for nothing else. Missing: this one's login is used for
	// keys, and for intake the administrator's own.
	Write string `yaml:"write"`

	at place // in the file
}

// Client is one registered OAuth client.
type Client struct {
	// Preset names the settings to start from: broker presets lists them;
	// oauth2 is for a server that has none of its own.
	Preset string `yaml:"preset" check:"required" hint:"broker presets lists them; oauth2 is for any other server"`
	// Secret is where the client's fields are.
	Secret Secret `yaml:"secret" check:"required" hint:"as in secret: { provider: NAME, path: PATH }"`
	// Owner is who answers for the client.
	Owner Owner `yaml:"owner" check:"required" hint:"as in owner: { contact: team@example.org, purpose: what it is for }"`
	// Allow lists who may ask for the client. No entry, no access: it can only
	// be missing where there are files, which need none.
	Allow []access.Entry `yaml:"allow"`
	// Scopes bounds what may be asked for. Missing: the issuer decides.
	Scopes []string `yaml:"scopes"`
	// Audiences bounds the audiences and resources that may be asked for.
	// Missing: none may.
	Audiences []string `yaml:"audiences"`
	// KeepWarm renews the token even if nobody reads it.
	KeepWarm bool `yaml:"keep_warm"`
	// Hosts is how many hosts use this client: they share its budget of
	// failed authentications. Zero: 1.
	Hosts int `yaml:"hosts"`
	// Refresh is where the refresh token is kept, for the grant
	// authorization_code, which needs it; other grants have none.
	Refresh *Refresh `yaml:"refresh"`
	// Files are written on a tmpfs, for programs that can read a file and
	// nothing else. Missing: none.
	Files []files.Config `yaml:"files"`
	// Leak is what happens to the client when its credentials leak.
	Leak LeakPolicy `yaml:"leak"`
	// Loopback is a TCP port of this machine for consumers that cannot speak HTTP
	// over a Unix socket. It is weaker. Missing: there is none.
	Loopback *gate.Port `yaml:"loopback"`
	// ReverseProxy are sockets on which the client's API can be called without
	// any credential: the broker adds the headers. Missing: none.
	ReverseProxy []proxy.Config `yaml:"reverse_proxy"`
	// Settings are the preset's, each replaced where the client sets its own.
	Settings `yaml:",inline"`

	at      place   // in the file
	entries []place // of each allow entry
	written []place // of each of files
}

// Secret names a secret in one of the configured managers.
type Secret struct {
	// Provider is a key of providers.
	Provider       string `yaml:"provider" check:"required" hint:"name a key of providers:"`
	providers.Spec `yaml:",inline"`
}

// Refresh names the secret of a refresh token: one of its own, which the broker
// itself writes. It is never a part of the bundle that is watched for rotation.
type Refresh struct {
	// Provider is a key of providers, one that can be written.
	Provider      string `yaml:"provider" check:"required" hint:"name a key of providers:"`
	providers.Ref `yaml:",inline"`
	// Owner is the name of this host, for one host owns a refresh token.
	// Missing: the host's own name.
	Owner string `yaml:"owner"`
}

// Owner answers for a client (OWASP Secrets Management Cheat Sheet §2.11).
type Owner struct {
	// Contact is an address at which the owner is reached.
	Contact string `yaml:"contact" check:"required" hint:"an address that outlives a person: team@example.org"`
	// Purpose says what the client is for.
	Purpose string `yaml:"purpose" check:"required" hint:"one line: what stops when this client stops?"`
}

// Settings say how to use one issuer. Presets state them with their sources.
type Settings struct {
	oidc.Profile `yaml:",inline"`
	// Requires lists fields that every version of the bundle must have beside
	// those of grant and client_auth, api_key for example. Missing: none.
	Requires []string `yaml:"requires"`
	// Headers are what a call to the API needs, by name: text with
	// {access_token} and {FIELD} of the bundle. An empty text drops a header
	// of the preset.
	Headers map[string]string `yaml:"headers"`
	// Scope is asked for when a consumer asks for none. Missing: the issuer's
	// own default.
	Scope string `yaml:"scope"`
	// Audience is asked for when a consumer asks for none. Missing: none.
	Audience string `yaml:"audience"`
	// Resource is asked for when a consumer asks for none (RFC 8707).
	// Missing: none.
	Resource string `yaml:"resource"`
	// Prove is how a new bundle is proved before it serves: mint a token,
	// refresh one, probe the API, or none. Missing: refresh with the grant
	// authorization_code, probe where no server issues tokens, else mint.
	Prove string `yaml:"prove" check:"mint|refresh|probe|none"`
	// Probe is a harmless request that shows whether the API takes the
	// client's headers. Missing: none is made; with prove: probe a new version
	// then waits for an administrator.
	Probe Probe `yaml:"probe"`
	// KeyRejected lists texts in an API's answer 401 which mean that the key
	// is refused and not the token. Upper and lower case are the same.
	// Missing: every 401 is about the token.
	KeyRejected []string `yaml:"key_rejected"`
	// Secrets says whether the issuer lets two secrets live at once. Missing:
	// unknown.
	Secrets string `yaml:"secrets" check:"one|two|unknown"`
	// Rotation says how the client's secret is replaced.
	Rotation Rotation `yaml:"rotation"`
	// LeakContacts are the issuer's addresses for a leak. Missing: only copy_to
	// is told, and broker check warns; [] says that this is meant.
	LeakContacts []string `yaml:"leak_contacts"`
	// IssuerName is what reports call the organisation behind the issuer.
	// Missing: the name of the issuer's host.
	IssuerName string `yaml:"issuer_name"`
	// Environment is production, test, or the issuer's own word. Missing:
	// reports do not say.
	Environment string `yaml:"environment"`
}

// Probe is a request to the API. It goes the way of the token requests, with
// their ca_file and proxy.
type Probe struct {
	// URL is https, or http on loopback, and holds no credential.
	URL string `yaml:"url" check:"required" hint:"a request of the API that changes nothing and costs little: https://host/path"`
	// Method is GET, or HEAD, whose answer has no text for key_rejected.
	// Missing: GET.
	Method string `yaml:"method" check:"GET|HEAD"`
}

// Rotation says how and when a client's secret is replaced.
type Rotation struct {
	// Kind says who makes a new secret: the owner (self-service) or the
	// issuer (by-request). Missing: by-request.
	Kind string `yaml:"kind" check:"self-service|by-request"`
	// Steps tell a person what to do at this issuer.
	Steps []string `yaml:"steps"`
	// MaxAge is how old a secret may become; status warns at 80 %. Missing:
	// any age.
	MaxAge clock.Duration `yaml:"max_age"`
	// Settle is how long a bundle from several secrets has to stay the same
	// before it counts. Missing: 30s.
	Settle clock.Duration `yaml:"settle"`
	// Poll is how often the manager is asked for a new version. Missing: 5m.
	Poll clock.Duration `yaml:"poll"`
	// Accept is unproved to let a new version serve that cannot be proved.
	// Missing: an administrator has to accept it.
	Accept string `yaml:"accept" check:"unproved"`
}

// LeakPolicy says what happens to a client whose credentials leak: quarantine
// hands nothing over any more, rotate looks for a new version and serves on,
// keep-serving does neither. The first two have tokens revoked.
type LeakPolicy struct {
	// Confirmed is for a leak that is certain. Missing: whoever declares it has
	// to say.
	Confirmed string `yaml:"confirmed" check:"quarantine|rotate|keep-serving"`
	// Suspected is for the suspicion of one. Missing: keep-serving.
	Suspected string `yaml:"suspected" check:"quarantine|rotate|keep-serving"`
	// Automatic is send to have what a scan finds (broker scan) reported to the
	// issuer at once, as a suspicion, with the policy of one: an issuer may then
	// stop the client. Missing: a person has to confirm it, as every other
	// suspicion of the daemon's own.
	Automatic string `yaml:"automatic" check:"send"`
}

// Leak says who reports a leak, and how.
type Leak struct {
	// Organisation is the one whose credentials these are.
	Organisation leak.Organisation `yaml:"organisation" check:"required" hint:"as in organisation: { name: NAME, kbo: NUMBER }"`
	// OnCall is whom the issuer can call at any hour.
	OnCall Person `yaml:"on_call" check:"required" hint:"as in on_call: { name: NAME, phone: NUMBER }"`
	// SMTP is the mail relay, and the sender.
	SMTP SMTP `yaml:"smtp" check:"required" hint:"as in smtp: { host: smtp.example.org, from: security@example.org }"`
	// Fallback are further relays, asked in this order when the ones before do
	// not take a report. Missing: none.
	Fallback []Relay `yaml:"fallback"`
	// CopyTo are the organisation's own addresses. They get a copy, what an
	// issuer does not get (who on this host held what), suspicions and drills.
	// Missing: smtp.reply_to, else smtp.from.
	CopyTo []string `yaml:"copy_to"`
	// Language comes first in a report; the other follows. Missing: nl, and en
	// for a client with the preset oauth2.
	Language string `yaml:"language" check:"nl|en"`
	// UndeliveredAfter is when a report that no relay has taken becomes an
	// alarm. Missing: 10m.
	UndeliveredAfter clock.Duration `yaml:"undelivered_after"`
	// DrillEvery is how old the last drill may become before check --live
	// warns. Missing: any age.
	DrillEvery clock.Duration `yaml:"drill_every"`
	// Sign has each report signed (S/MIME). Missing: none is.
	Sign *Sign `yaml:"sign"`
	// Encrypt has reports encrypted, by the address of the recipient. To an
	// address that is not here they go in the clear. Missing: all do.
	Encrypt map[string]Recipient `yaml:"encrypt"`

	protection leak.Protection // what the files hold
}

// Sign is what reports are signed with (S/MIME, RFC 8551).
type Sign struct {
	// CertificateFile is the certificate of smtp.from in PEM, RSA or P-256, and
	// after it those between it and its authority.
	CertificateFile string `yaml:"certificate_file" check:"required"`
	// Secret holds its private key in the field private_key.
	Secret Secret `yaml:"secret" check:"required" hint:"as in secret: { provider: NAME, path: PATH }"`
}

// Recipient is whose reports are encrypted: exactly one of its keys is set.
type Recipient struct {
	// CertificateFile is the recipient's certificate in PEM, RSA, for S/MIME.
	CertificateFile string `yaml:"certificate_file"`
	// OpenPGPKeyFile is the recipient's public key, armored or not, for PGP/MIME
	// (RFC 3156).
	OpenPGPKeyFile string `yaml:"openpgp_key_file"`
}

// Person is whom somebody can call.
type Person struct {
	Name  string `yaml:"name" check:"required"`  // or the duty's
	Phone string `yaml:"phone" check:"required"` // with the country: +32 2 000 00 00
}

// SMTP is a mail relay, and who sends through it and the others.
type SMTP struct {
	Relay `yaml:",inline"`
	// From is the sender's address.
	From string `yaml:"from" check:"required"`
	// ReplyTo is a person's or team's address. Missing: From.
	ReplyTo string `yaml:"reply_to"`
}

// Relay is a mail relay.
type Relay struct {
	leak.Relay `yaml:",inline"`
	// Secret holds username and password. Missing: the relay asks for none.
	Secret *Secret `yaml:"secret"`
}

// Relays are all of them in order, the first one first.
func (l *Leak) Relays() []Relay { return append([]Relay{l.SMTP.Relay}, l.Fallback...) }

// Admin says who may administer the daemon, by groups of the machine (names or
// numbers). Root may always.
type Admin struct {
	Observe  []string `yaml:"observe"`  // status, metrics, audit; missing: root alone
	Operate  []string `yaml:"operate"`  // rotate, reload, intake, and what observe may; missing: root alone
	Incident []string `yaml:"incident"` // declare and contain a leak; missing: root alone
}

// Limits bound what one user of the machine may do, so that the others are
// served whatever it does.
type Limits struct {
	ConnectionsPerUser int `yaml:"connections_per_user"` // open at once; zero: 256
	RequestsPerSecond  int `yaml:"requests_per_second"`  // of one user, twice that for a moment; zero: 5000
	Connections        int `yaml:"connections"`          // of all users; zero: 4096
}

// Sockets are paths of the daemon's sockets when no socket unit hands them to
// it.
type Sockets struct {
	Consumer string `yaml:"consumer"` // missing: /run/credential-broker/broker.sock, or the same under $XDG_RUNTIME_DIR
	Admin    string `yaml:"admin"`    // missing: admin.sock beside it
}

// Metrics says where metrics go beside the administrators' socket. They hold
// no secret, but the names of the clients and how these do: whoever is on this
// machine can read them there. A change is taken with the next reload.
type Metrics struct {
	// Listen is a loopback address and port for GET /metrics. Missing: none.
	Listen string `yaml:"listen"`
	// TextFile is a file for node_exporter's textfile collector, written anew
	// every 15 s and readable for all. Missing: none.
	TextFile string `yaml:"textfile"`
}

// Alarm says whom each alarm of the audit log is told, one at a time: a
// command, a webhook or both. docs/monitoring.md says more. A change is taken
// with the next reload.
type Alarm struct {
	// Command is the absolute path of a program, and its arguments, which gets
	// the alarm as a line of JSON on standard input. Nobody but root and the
	// broker's own user may be able to write it. Missing: there is a webhook.
	Command []string `yaml:"command"`
	// Timeout is how long one run of the command may take, at most 10m. Missing:
	// 30s.
	Timeout clock.Duration `yaml:"timeout"`
	// Webhook gets each alarm as a signed request. Missing: there is a command.
	Webhook *Webhook `yaml:"webhook"`
}

// Webhook is where alarms are posted, each signed as in Standard Webhooks
// 1.0.0 (HMAC-SHA256).
type Webhook struct {
	// URL is https, or http on loopback, and holds no credential.
	URL string `yaml:"url" check:"required" hint:"as in url: https://pager.example.org/alarm"`
	// Secret has the field key: whsec_ and the base64 of 24 to 64 random bytes.
	Secret Secret `yaml:"secret" check:"required" hint:"as in secret: { provider: NAME, path: PATH }"`
	// Timeout is how long one request may take, at most 30s. Missing: 30s.
	Timeout clock.Duration `yaml:"timeout"`
	// CAFile and Proxy as everywhere.
	outbound.Config `yaml:",inline"`
}

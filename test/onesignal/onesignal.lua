-- The stand-in for OneSignal's API: create, view and cancel a message, and misbehave on demand.
--
-- Everything that requests share is in nginx's shared dictionaries, so that any number of workers
-- behave as one. What only the control endpoint changes (apps, keys, faults) is one JSON text there
-- with a version number; each worker keeps it parsed and looks at the number alone, since a
-- benchmark comes through here 100,000 times a second.

local cjson = require "cjson"

local ngx, var, header = ngx, ngx.var, ngx.header
local print, exit, sleep, flush = ngx.print, ngx.exit, ngx.sleep, ngx.flush
local lower, sub, find, rep = string.lower, string.sub, string.find, string.rep
local state, messages, received = ngx.shared.state, ngx.shared.messages, ngx.shared.received

local M = {}
local dir
local logging

-- nginx's own clock counts milliseconds; LuaJIT can ask for more.
local clock = ngx.now
local has_ffi, ffi = pcall(require, "ffi")
if has_ffi then
    ffi.cdef "typedef struct { long s; long us; } onesignal_time; int gettimeofday(onesignal_time *, void *);"
    local now = ffi.new("onesignal_time")
    clock = function()
        ffi.C.gettimeofday(now, nil)
        return tonumber(now.s) + tonumber(now.us) / 1e6
    end
end

-- What each status says when a fault does not say otherwise; texts are OneSignal's where known.
local ACCESS_DENIED = cjson.encode({
    errors = { "Access denied.  Please include an 'Authorization: ...' header with a valid API key"
        .. " (https://documentation.onesignal.com/docs/keys-and-ids)." },
    reference = { "https://documentation.onesignal.com/docs/keys-and-ids" } })
local BODY = {
    [400] = '{"errors":["Notification has already been sent to all recipients"]}',
    [401] = ACCESS_DENIED,
    [403] = ACCESS_DENIED,
    [404] = '{"errors":["Notification not found"]}',
    [408] = '{"errors":["Request timeout"]}',
    [429] = '{"errors":["API rate limit exceeded"]}',
    [500] = '{"errors":["Internal server error"]}',
    [503] = '{"errors":["Service temporarily unavailable"]}',
}
local SUCCESS = '{"success":true}'
local NO_APP = '{"errors":["app_id not found. You may be missing a Content-Type: application/json header."]}'

-- Bodies that break parsers.
local GARBLE = {
    invalid_utf8 = function() return '{"errors":["\255\254\192\175 \237\160\128"]}' end,
    nul = function() return '{"errors":["a\\u0000b"]}' end,
    nul_byte = function() return '{"errors":["a\0b"]}' end,
    nested = function() return rep("[", 100000) .. rep("]", 100000) end,
    nested_open = function() return '{"errors":' .. rep("[", 100000) end,
    big_number = function() return '{"success":1e999999}' end,
    surrogate = function() return '{"errors":["\\ud800"]}' end,
    not_json = function() return "<html><body><h1>502 Bad Gateway</h1></body></html>" end,
    half = function() return '{"success":tr' end,
    control = function() return '{"errors":["line\\nbreak \\u001b[31mred\\u0007 \\u202e"]}' end,
    many = function() return '{"errors":[' .. rep('"error",', 10000) .. '"last"]}' end,
    long = function() return '{"errors":["' .. rep("x", 50000) .. '"]}' end,
}

-- Configuration

local config, config_version

local function parse_config()
    config = cjson.decode(state:get("config"))
    config.at = {}
    for _, fault in ipairs(config.faults) do
        for _, target in ipairs(fault.targets) do
            local list = config.at[target] or {}
            config.at[target] = list
            list[#list + 1] = fault
        end
    end
    config.any_fault = #config.faults > 0
    config.present = {}
    for _, fault in ipairs(config.faults) do config.present[fault.number] = true end
end

local function current_config()
    local version = state:get("version")
    if version ~= config_version then
        parse_config()
        config_version = version
    end
    return config
end

-- Changes the configuration under a lock that all workers share.
local function change_config(change)
    while not state:add("lock", 1, 5) do sleep(0.001) end
    local new = cjson.decode(state:get("config"))
    local ok, answer = pcall(change, new)
    if ok then
        state:set("config", cjson.encode(new))
        state:incr("version", 1)
    end
    state:delete("lock")
    if not ok then error(answer, 0) end
    return answer
end

local function add_app(conf, app)
    conf.apps_made = conf.apps_made + 1
    app.number = conf.apps_made
    app.id = lower(app.id)
    conf.apps[app.id] = app
end

local SAVED = { state = state, messages = messages, received = received }

function M.init(directory, with_log)
    dir, logging = directory, with_log
    local file = io.open(dir .. "/state", "r")
    if file then
        for line in file:lines() do
            local entry = cjson.decode(line)
            SAVED[entry[1]]:set(entry[2], entry[3], 0, entry[4])
        end
        file:close()
        os.remove(dir .. "/state")
        return
    end
    file = assert(io.open(dir .. "/start.json", "r"))
    local first = cjson.decode(file:read("*a"))
    file:close()
    local conf = { apps = {}, apps_made = 0, faults = first.faults, faults_made = #first.faults }
    add_app(conf, first.app)
    state:set("config", cjson.encode(conf))
    state:set("version", 1)
end

-- An outage must not lose what was scheduled: "stop --keep" leaves a file that asks for this.
function M.exit_worker()
    if ngx.worker.id() ~= 0 then return end
    local keep = io.open(dir .. "/keep", "r")
    if not keep then return end
    keep:close()
    os.remove(dir .. "/keep")
    local file = assert(io.open(dir .. "/state", "w"))
    for name, dict in pairs(SAVED) do
        for _, key in ipairs(dict:get_keys(0)) do
            local value, flags = dict:get(key)
            if value ~= nil and key ~= "lock" and sub(key, 1, 5) ~= "rate " then
                file:write(cjson.encode({ name, key, value, flags or 0 }), "\n")
            end
        end
    end
    file:close()
end

local id_seed, id_count

function M.init_worker()
    local random = assert(io.open("/dev/urandom", "rb"))
    id_seed, id_count = random:read(16), 0
    math.randomseed(string.byte(id_seed, 1) + 256 * string.byte(id_seed, 2))
    random:close()
end

-- A version 4 UUID.
local function new_id()
    id_count = id_count + 1
    local hex = ngx.md5(id_seed .. id_count)
    return sub(hex, 1, 8) .. "-" .. sub(hex, 9, 12) .. "-4" .. sub(hex, 14, 16) .. "-a"
        .. sub(hex, 18, 20) .. "-" .. sub(hex, 21, 32)
end

-- Seconds since 1970 of a send_after: ISO 8601, or "2026-01-31 14:00:00 GMT-0700" as OneSignal's documents show.
local function parse_time(text)
    if type(text) == "number" then return text end
    if type(text) ~= "string" then return nil end
    local y, mo, d, h, mi, rest = text:match("^(%d%d%d%d)-(%d%d)-(%d%d)[T ](%d%d):(%d%d)(.*)$")
    if not y then return nil end
    local s, zone = rest:match("^:(%d%d%.?%d*)(.*)$")
    zone = (zone or rest):gsub("^ *", ""):gsub("^GMT", ""):gsub("^UTC", ""):gsub("^Z", "")
    local sign, zh, zm = zone:match("^([+-])(%d%d):?(%d?%d?)$")
    if not sign and zone ~= "" then return nil end
    y, mo, d = tonumber(y), tonumber(mo), tonumber(d)
    -- days since 1970, counting years from March
    if mo <= 2 then y, mo = y - 1, mo + 12 end
    local days = 365 * y + math.floor(y / 4) - math.floor(y / 100) + math.floor(y / 400)
        + math.floor((153 * (mo - 3) + 2) / 5) + d - 719469
    local offset = sign and (tonumber(zh) * 3600 + (tonumber(zm) or 0) * 60) * (sign == "-" and -1 or 1) or 0
    return days * 86400 + tonumber(h) * 3600 + tonumber(mi) * 60 + (tonumber(s) or 0) - offset
end

-- The API. Each returns status and body. A message is the number of seconds at which it is sent,
-- flagged with its app's number; once canceled the number is negative.

local CANCELED = -1

local function create(app, body)
    local send_after = ngx.now()
    if body.send_after ~= nil and body.send_after ~= cjson.null then
        send_after = parse_time(body.send_after)
        if not send_after then return 400, '{"errors":["send_after is not a valid time"]}' end
    end
    local id = new_id()
    messages:set(id, math.max(send_after, 1), 0, app.number)
    var.created = id
    return 200, cjson.encode({ id = id, external_id = cjson.null })
end

local function cancel(app, id)
    local send_after, owner = messages:get(id)
    if not send_after or owner ~= app.number then
        if not app.accept_any or send_after then return 404, BODY[404] end
        messages:set(id, CANCELED, 0, app.number)
        return 200, SUCCESS
    end
    -- What a second cancel answers is not documented; success is what an idempotent DELETE would say.
    if send_after < 0 then
        local status = app.repeat_status or 200
        return status, status < 300 and SUCCESS or BODY[status] or ""
    end
    if send_after <= ngx.now() then return 400, BODY[400] end
    messages:replace(id, -send_after, 0, app.number)
    return 200, SUCCESS
end

local function view(app, id)
    local send_after, owner = messages:get(id)
    if not send_after and app.accept_any then send_after, owner = ngx.now() + 3600, app.number end
    if not send_after or owner ~= app.number then return 404, BODY[404] end
    local canceled = send_after < 0
    if canceled then send_after = -send_after end
    local sent = not canceled and send_after <= ngx.now()
    return 200, cjson.encode({ id = id, app_id = app.id, canceled = canceled, send_after = math.floor(send_after),
        completed_at = sent and math.floor(send_after) or cjson.null, successful = sent and 1 or 0 })
end

-- Counts an answer by method and status. The keys are kept, since making strings is what costs.
local count_keys = {}
local function count(method, status)
    local keys = count_keys[method]
    if not keys then
        keys = {}
        count_keys[method] = keys
    end
    local key = keys[status]
    if not key then
        key = "count " .. method .. " " .. status
        keys[status] = key
    end
    state:incr(key, 1, 0)
end

local function answer(method, status, body)
    count(method, status)
    -- Whoever reads the log waits for as many lines with this as were counted.
    if logging then var.answered = "1" end
    ngx.status = status
    if status ~= 204 and status ~= 304 then
        header.content_length = #body
        print(body)
    end
end

-- Over the app's limit in this second? Creates and cancels share it; counted on receipt.
local function over_limit(app)
    if not app.rate_limit then return false end
    local n = state:incr("rate " .. app.id .. ngx.time(), 1, 0, 5)
    return n and n > app.rate_limit
end

-- More than 10 views of the app in the last 10 seconds? Returns how long until there may be another.
local function view_wait(app)
    if app.view_limit == false then return nil end
    local key, now, times = "rate view " .. app.id, clock(), {}
    for _, time in ipairs(cjson.decode(state:get(key) or "[]")) do
        if now - time < 10 then times[#times + 1] = time end
    end
    if #times >= 10 then return math.ceil(10 - (now - times[1])) end
    times[#times + 1] = now
    state:set(key, cjson.encode(times))
end

-- The first fault for this request that has not been used up: the message's, else the app's, else everybody's.
local function next_fault(conf, method, app_id, id)
    for _, target in ipairs({ "message " .. (id or ""), "app " .. (app_id or ""), "*" }) do
        for _, fault in ipairs(conf.at[target] or {}) do
            if (not fault.method or fault.method == method)
                and (not fault.app or fault.app == app_id)
                and (not fault.one_in or math.random(fault.one_in) == 1)
                and (not fault.times or (state:incr("times " .. fault.number, -1) or -1) >= 0) then
                return fault
            end
        end
    end
end

local function fault_body(fault, status)
    if fault.body_base64 then return ngx.decode_base64(fault.body_base64) or "" end
    if fault.body then return fault.body end
    return BODY[status] or (status < 300 and SUCCESS) or ""
end

local KINDS = {}

function KINDS.answer(fault, method)
    local status = fault.status or 200
    answer(method, status, fault_body(fault, status))
end

function KINDS.garble(fault, method)
    answer(method, fault.status or 200, GARBLE[fault.what or "not_json"]())
end

-- A debugging proxy that sends back what it got, the key too.
function KINDS.echo(fault, method)
    local sent = var.http_authorization or ""
    header["X-Echo"] = sent
    answer(method, fault.status or 400, cjson.encode({ errors = { "you sent Authorization: " .. sent } }))
end

function KINDS.hang(_, method)
    count(method, "hang")
    while true do sleep(60) end
end

function KINDS.reset(_, method)
    count(method, "reset")
    exit(444)
end

function KINDS.truncate(fault, method)
    count(method, "truncate")
    local body = fault_body(fault, fault.status or 200)
    ngx.status = fault.status or 200
    header.content_length = #body + 1000
    print(body)
    flush(true)
    -- The body must have left before the connection is torn down under it.
    sleep(0.02)
    exit(444)
end

function KINDS.flood(fault, method)
    count(method, "flood")
    local chunk, left = rep(" ", 65536), fault.size or 1e12
    ngx.status = fault.status or 200
    print('{"success":true,"padding":"')
    while left > 0 do
        if not print(chunk) or not flush(true) then break end
        left = left - #chunk
    end
    exit(444)
end

function KINDS.drip(fault, method)
    count(method, "drip")
    local body = fault_body(fault, fault.status or 200)
    ngx.status = fault.status or 200
    header.content_length = #body
    ngx.send_headers()
    for i = 1, #body do
        if not print(sub(body, i, i)) or not flush(true) then break end
        sleep((fault.pause or 100) / 1000)
    end
end

-- The same for a sound answer and for a fault that has an effect.
local function carry_out(request)
    local app, id, method = request.app, request.id, request.method
    if not request.app_id then return 400, NO_APP end
    if not request.allowed then return 403, ACCESS_DENIED end
    if id and method == "DELETE" then return cancel(app, id) end
    if id and method == "GET" then return view(app, id) end
    if not id and method == "POST" then return create(app, request.body) end
    return 405, '{"errors":["Method not allowed"]}'
end

local function misbehave(fault, request)
    local method = request.method
    -- Until somebody clears it: a test that needs an answer to wait for something does not guess a time.
    while fault.hold and current_config().present[fault.number] do sleep(0.02) end
    if fault.delay and not fault.effect then sleep(fault.delay / 1000) end
    if fault.kind == "delay" then
        local status, body = carry_out(request)
        if fault.delay and fault.effect then sleep(fault.delay / 1000) end
        return answer(method, status, body)
    end
    -- "effect": the request is carried out, only its answer goes wrong.
    if fault.effect then
        carry_out(request)
        if fault.delay then sleep(fault.delay / 1000) end
    end
    if fault.content_type then header.content_type = fault.content_type end
    if fault.status == 429 then header.retry_after = 1 end
    for name, value in pairs(fault.headers or {}) do
        -- so that a 429 can do without Retry-After
        if value == cjson.null or value == "" then value = nil end
        header[name] = value
    end
    KINDS[fault.kind](fault, method)
end

-- Which resource: "list" for /notifications, or the message's id. The path of old SDKs is the same API.
local function resource(uri)
    if sub(uri, 1, 7) == "/api/v1" then uri = sub(uri, 8) end
    if uri == "/notifications" then return "list" end
    if sub(uri, 1, 15) == "/notifications/" and #uri > 15 and not find(uri, "/", 16, true) then
        return lower(sub(uri, 16))
    end
end

function M.api()
    if logging then var.arrived = string.format("%.6f", clock()) end
    local conf = current_config()
    local method, what = ngx.req.get_method(), resource(var.uri)
    state:incr("received", 1, 0)
    if not what then
        return answer(method, 404, '{"errors":["No such path"]}')
    end

    local app_id, id, body = var.arg_app_id, what, nil
    if what == "list" then
        id = nil
        if method == "POST" then
            ngx.req.read_body()
            local ok, parsed = pcall(cjson.decode, ngx.req.get_body_data() or "")
            body = ok and type(parsed) == "table" and parsed or {}
            app_id = type(body.app_id) == "string" and body.app_id or nil
            if app_id and find(app_id, "^[%x-]+$") then var.created_for = app_id end
        end
    elseif method == "DELETE" then
        received:incr(id, 1, 0)
    end

    local app = app_id and (conf.apps[app_id] or conf.apps[lower(app_id)])
    local sent = var.http_authorization
    local allowed = app and sent == "Key " .. app.key
    if not allowed then var.key_is = sent and "wrong" or "missing" end

    -- A table, not a closure: LuaJIT would not compile what makes one.
    local request = { method = method, app = app, app_id = app_id, allowed = allowed, id = id, body = body }

    if app and method ~= "GET" and over_limit(app) then
        header.retry_after = app.retry_after or 1
        return answer(method, 429, BODY[429])
    end
    local wait = app and id and method == "GET" and view_wait(app)
    if wait then
        header.retry_after = wait
        return answer(method, 429, BODY[429])
    end
    if conf.any_fault then
        local fault = next_fault(conf, method, app and app.id, id)
        if fault then return misbehave(fault, request) end
    end
    return answer(method, carry_out(request))
end

-- The control endpoint: JSON in, JSON out.

local CONTROL = {}

local function known_app(conf, id)
    return conf.apps[lower(id or "")] or error("unknown app_id", 0)
end

-- A JSON null means "not given".
local function without_nulls(t)
    for k, v in pairs(t) do
        if v == cjson.null then t[k] = nil end
    end
    return t
end

CONTROL["GET received"] = function(args)
    if args.message_id then return { received = received:get(lower(args.message_id)) or 0 } end
    return { received = state:get("received") or 0 }
end

CONTROL["GET counts"] = function()
    local counts = {}
    for _, key in ipairs(state:get_keys(0)) do
        local method, status = key:match("^count (%S+) (%S+)$")
        if method then
            counts[method] = counts[method] or {}
            counts[method][status] = state:get(key)
        end
    end
    return { received = state:get("received") or 0, answered = counts }
end

CONTROL["GET message"] = function(args)
    local send_after, owner = messages:get(lower(args.message_id or ""))
    if not send_after then return { state = "unknown" } end
    if send_after < 0 then return { state = "canceled", app = owner } end
    return { state = send_after <= ngx.now() and "sent" or "scheduled", app = owner, send_after = send_after }
end

-- Forgets messages, counts and faults; apps and their keys stay.
CONTROL["POST reset"] = function()
    change_config(function(conf) conf.faults = {} end)
    messages:flush_all()
    received:flush_all()
    for _, key in ipairs(state:get_keys(0)) do
        if key:find("^count ") or key:find("^times ") or key == "received" then state:delete(key) end
    end
    return { ok = true }
end

local function targets_of(fault)
    if type(fault.message) == "table" then
        local targets = {}
        for i, id in ipairs(fault.message) do targets[i] = "message " .. lower(id) end
        return targets
    end
    if fault.message and fault.message ~= "*" then return { "message " .. lower(fault.message) } end
    if fault.app then return { "app " .. fault.app } end
    return { "*" }
end

local FAULT_FIELDS = {}
for field in ("message app method times one_in delay effect status body body_base64 content_type headers "
    .. "kind what pause size hold"):gmatch("%S+") do
    FAULT_FIELDS[field] = true
end

-- A new fault comes after those of the same target that have a count, and takes the place of one that has none.
CONTROL["POST fault"] = function(_, fault)
    for field in pairs(fault) do
        if not FAULT_FIELDS[field] then error("unknown field " .. field, 0) end
    end
    for _, field in ipairs({ "times", "one_in", "delay", "status", "pause", "size" }) do
        fault[field] = tonumber(fault[field])
    end
    local kind = fault.kind
    if not kind then
        local answers = fault.status or fault.body or fault.body_base64 or fault.headers or fault.content_type
        kind = fault.what and "garble" or answers and "answer" or "delay"
    end
    if kind ~= "delay" and not KINDS[kind] then error("unknown kind", 0) end
    if fault.what and not GARBLE[fault.what] then error("unknown what", 0) end
    if fault.app == "*" then fault.app = nil end
    if fault.app then fault.app = lower(fault.app) end
    fault.kind, fault.targets = kind, targets_of(fault)
    return change_config(function(conf)
        conf.faults_made = conf.faults_made + 1
        fault.number = conf.faults_made
        if fault.times then state:set("times " .. fault.number, fault.times) end
        local kept = {}
        for _, old in ipairs(conf.faults) do
            if old.times or old.targets[1] ~= fault.targets[1] or old.method ~= fault.method
                or old.app ~= fault.app then
                kept[#kept + 1] = old
            end
        end
        kept[#kept + 1] = fault
        conf.faults = kept
        return { fault = fault.number }
    end)
end

CONTROL["DELETE faults"] = function()
    change_config(function(conf) conf.faults = {} end)
    return { ok = true }
end

CONTROL["POST key"] = function(_, body)
    return change_config(function(conf)
        known_app(conf, body.app_id).key = body.api_key or error("api_key is missing", 0)
        return { ok = true }
    end)
end

CONTROL["POST rate_limit"] = function(_, body)
    return change_config(function(conf)
        local app = known_app(conf, body.app_id)
        app.rate_limit = tonumber(body.rate_limit)
        app.retry_after = body.retry_after
        return { ok = true }
    end)
end

CONTROL["POST view_limit"] = function(_, body)
    return change_config(function(conf)
        known_app(conf, body.app_id).view_limit = body.view_limit ~= false
        return { ok = true }
    end)
end

CONTROL["POST repeat"] = function(_, body)
    return change_config(function(conf)
        known_app(conf, body.app_id).repeat_status = tonumber(body.status)
        return { ok = true }
    end)
end

CONTROL["POST accept_any"] = function(_, body)
    return change_config(function(conf)
        known_app(conf, body.app_id).accept_any = body.accept_any ~= false
        return { ok = true }
    end)
end

CONTROL["POST app"] = function(_, body)
    return change_config(function(conf)
        local app = { id = body.app_id or new_id(), key = body.api_key or "os_v2_app_" .. new_id():gsub("-", ""),
            rate_limit = tonumber(body.rate_limit), retry_after = body.retry_after,
            accept_any = body.accept_any == true }
        add_app(conf, app)
        return { app_id = app.id, api_key = app.key }
    end)
end

-- So that a test can schedule ids of its own choice, and many at once.
CONTROL["POST message"] = function(_, body)
    local app = known_app(current_config(), body.app_id)
    local send_after = parse_time(body.send_after) or ngx.now() + 3600
    for _, id in ipairs(body.message_ids or { body.message_id }) do
        messages:set(lower(id), math.max(send_after, 1), 0, app.number)
    end
    return { ok = true }
end

function M.control()
    ngx.req.read_body()
    local text, file = ngx.req.get_body_data(), ngx.req.get_body_file()
    if not text and file then text = assert(io.open(file, "rb")):read("*a") end
    local handler = CONTROL[ngx.req.get_method() .. " " .. (var.uri:match("^/_stand_in/(%w[%w_]*)$") or "")]
    local ok, result = false, "no such control call"
    if handler then
        ok, result = pcall(function()
            local body = text and text ~= "" and cjson.decode(text) or {}
            return handler(ngx.req.get_uri_args(), without_nulls(body))
        end)
    end
    if not ok then
        ngx.status = 400
        result = { error = tostring(result) }
    end
    print(cjson.encode(result), "\n")
end

return M

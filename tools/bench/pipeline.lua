-- For wrk: N requests in each write, from "wrk ... -- N". Composed once, so that it costs the generator nothing.
function init(args)
    local one = wrk.format
    wrk.format = function() return string.rep(one(), tonumber(args[1])) end
end

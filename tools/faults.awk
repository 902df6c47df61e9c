# Prints, of lines "scenario call how points", a table with a row for each scenario and a column for each call.
{
    if (!($1 in scenario_seen)) { scenario_seen[$1]; scenario[++scenarios] = $1 }
    if (!($2 in call_seen)) { call_seen[$2]; call[++calls] = $2 }
    points[$1, $2] += $4; of_scenario[$1] += $4; of_call[$2] += $4; all += $4
}
END {
    printf "%-38s%8s", "failure points of", "all"
    for (c = 1; c <= calls; c++) if (of_call[call[c]]) printf "%13s", call[c]
    for (s = 1; s <= scenarios; s++) {
        printf "\n%-38s%8d", scenario[s], of_scenario[scenario[s]]
        for (c = 1; c <= calls; c++) if (of_call[call[c]]) printf "%13d", points[scenario[s], call[c]]
    }
    printf "\n%-38s%8d", "all", all
    for (c = 1; c <= calls; c++) if (of_call[call[c]]) printf "%13d", of_call[call[c]]
    printf "\n"
    for (c = 1; c <= calls; c++) if (!of_call[call[c]]) printf "never called: %s\n", call[c]
}

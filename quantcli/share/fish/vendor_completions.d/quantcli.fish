function _quantcli_completion;
    set -l word (commandline -ct);
    set -l option (string match -r '^--[^=]*=' -- $word);
    test -n "$option"; or set option "";
    set -l response (env _QUANTCLI_COMPLETE=fish_complete COMP_WORDS=(commandline -cp) COMP_CWORD=$word quantcli);

    for completion in $response;
        set -l found (string split -m 1 "," -- $completion);

        if test $found[1] = "dir";
            for path in (__fish_complete_directories $found[2]); echo $option$path; end;
        else if test $found[1] = "file";
            for path in (__fish_complete_path $found[2]); echo $option$path; end;
        else if test $found[1] = "plain";
            echo $option$found[2];
        end;
    end;
end;

complete --no-files --command quantcli --arguments "(_quantcli_completion)";

